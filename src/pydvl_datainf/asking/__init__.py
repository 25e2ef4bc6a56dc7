"""Questions to a finished run: which training samples an answer of the model came from.

What generates or tokenises needs the extra [hf]; importing does not.
"""

from pydvl_datainf.asking.ask import ask
from pydvl_datainf.asking.questions import Question, read_questions

__all__ = ["Question", "ask", "read_questions"]
