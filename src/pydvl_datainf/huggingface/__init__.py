"""transformers and peft: models from folders, texts from files, and the way in from a Trainer.

What loads or reads needs the extra [hf]; importing does not.
"""

from pydvl_datainf.huggingface.builder import InfluenceBuilder, objective_of
from pydvl_datainf.huggingface.encoding import (
    AnswerEncoder,
    ChatEncoder,
    ClassEncoder,
    Encoder,
    TagEncoder,
)
from pydvl_datainf.huggingface.models import ModelFiles, Task
from pydvl_datainf.huggingface.records import read_records
from pydvl_datainf.huggingface.selection import Parameters, Selection, select_parameters
from pydvl_datainf.huggingface.tokens import TokenSamples
from pydvl_datainf.huggingface.trainer import TrainerInfluence, influence_from_trainer

__all__ = [
    "AnswerEncoder",
    "ChatEncoder",
    "ClassEncoder",
    "Encoder",
    "InfluenceBuilder",
    "ModelFiles",
    "Parameters",
    "Selection",
    "TagEncoder",
    "Task",
    "TokenSamples",
    "TrainerInfluence",
    "influence_from_trainer",
    "objective_of",
    "read_records",
    "select_parameters",
]
