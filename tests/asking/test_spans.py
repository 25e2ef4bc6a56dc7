"""Of an answer in a chat template its span alone counts, and not what the template writes."""

import pytest

from pydvl_datainf.asking import Question
from pydvl_datainf.asking.encoding import encode_question
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import AnswerEncoder
from tuned import tokenizer

CHAT = AnswerEncoder(tokenizer(), 64, chat=True)  # which ends a turn by </s>


def encoded(answer, span=None, encoder=CHAT):
    return encode_question(encoder, Question("What is 3?", answer, span=span), answer, 1)


def test_marks_of_the_template_are_no_part_of_an_answer():
    assert "".join(encoded("It is s/3.").tokens) == "It is s/3.</s>"
    assert "".join(encoded("It is s/3.", "s").tokens) == " iss"
    with pytest.raises(SourceError, match=r"'</s>' is no part of the answer 'It is 3\.'"):
        encoded("It is 3.", "</s>")


def test_too_long_a_question_says_what_to_do():
    short = AnswerEncoder(tokenizer(), 4)
    with pytest.raises(SourceError, match="nothing of the answer counts within max_length=4") as e:
        encoded(" It is 3.", encoder=short)
    assert "on_unusable" not in str(e.value)
    assert "Give a shorter prompt" in str(e.value)
