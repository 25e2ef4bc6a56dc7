"""By kind of model: which module answers a question, and which makes a sample of it."""

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pydvl_datainf.asking.encoding import Asked, encode_question
from pydvl_datainf.asking.generation import generate_answer
from pydvl_datainf.asking.labels import SEVERAL, encode_label, predict_labels
from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.asking.translations import encode_target, generate_target
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    ChatEncoder,
    ClassEncoder,
    TranslationEncoder,
)
from pydvl_datainf.huggingface.several_labels import write_labels

QuestionEncoder: TypeAlias = AnswerEncoder | ChatEncoder | TranslationEncoder | ClassEncoder


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answer.

    Attributes:
        question: with the answer.
        origin: who gave it: "given", or by the model "generated" or "predicted".
        labels: that were predicted; as text, some names could be read otherwise.
        ends: the token by which the model ended an answer that it generated, none where that was
            cut; None = the answer ends as those of the training data.
    """

    question: Question
    origin: str
    labels: tuple[str, ...] | None = None
    ends: tuple[int, ...] | None = None

    @property
    def answer(self) -> str:
        """The answer."""
        return str(self.question.known_answer)


def answer_question(
    model: Any, encoder: QuestionEncoder, question: Question, number: int, max_new_tokens: int
) -> Answered:
    """Lets a model answer a question that has no answer.

    Args:
        model: of the run.
        encoder: that of the training data.
        question: asked.
        number: of the question, for messages, from 1.
        max_new_tokens: tokens at which an answer that is generated is cut.

    Returns:
        The question with an answer.
    """
    if question.known_answer is not None:
        return Answered(question, "given")
    if isinstance(encoder, ClassEncoder):
        labels = predict_labels(model, encoder, question, number)
        is_one = encoder.problem != SEVERAL
        answer = labels[0] if is_one else write_labels(labels)
        return Answered(replace(question, answer=answer), "predicted", labels)
    if isinstance(encoder, TranslationEncoder):
        answer, ends = generate_target(model, encoder, question, number, max_new_tokens)
    else:
        answer, ends = generate_answer(model, encoder, question, number, max_new_tokens)
    return Answered(replace(question, answer=answer), "generated", ends=ends)


def encode_answered(model: Any, encoder: QuestionEncoder, asked: Answered, number: int) -> Asked:
    """Tokenises a question and its answer as the training data was.

    Args:
        model: of the run.
        encoder: that of the training data.
        asked: a question with its answer.
        number: of the question, for messages, from 1.

    Returns:
        The sample.

    Raises:
        SourceError: if the question is none to such a model.
    """
    question, answer = asked.question, asked.answer
    if isinstance(encoder, ClassEncoder):
        return encode_label(encoder, question, answer, number, asked.labels)
    if question.text_pair is not None:
        raise SourceError(
            f"{place_of(number)}: 'text_pair' is asked of classifiers of pairs. Leave it out."
        )
    if isinstance(encoder, TranslationEncoder):
        return encode_target(model, encoder, question, answer, number, asked.ends)
    return encode_question(encoder, question, answer, number, asked.ends)
