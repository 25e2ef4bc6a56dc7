"""Questions tokenised as the training data was; of an answer a span, or one token, may count."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydvl_datainf.asking.questions import Question
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder
from pydvl_datainf.huggingface.answers import Written, tokenised
from pydvl_datainf.huggingface.encoder import UnusableError
from pydvl_datainf.huggingface.records import Place, Placed, brief
from pydvl_datainf.huggingface.tokens import Encoded
from pydvl_datainf.objectives.tokens import IGNORED

AnswersEncoder: TypeAlias = AnswerEncoder | ChatEncoder


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer, tokenised.

    Attributes:
        prompt: what is asked, as text.
        answer: what is answered.
        sample: token ids, mask and labels.
        tokens: the tokens that count, as text.
    """

    prompt: str
    answer: str
    sample: Encoded
    tokens: tuple[str, ...]

    def by_token(self) -> Iterator["Asked"]:
        """The same once for each token that counts, of which that one alone counts.

        Yields:
            Their losses add up to that of the whole answer, if its tokens' losses are added.
        """
        labels = self.sample["labels"]
        counted = [t for t, label in enumerate(labels) if t and label != IGNORED]
        for t, token in zip(counted, self.tokens, strict=True):
            alone = [label if i == t else IGNORED for i, label in enumerate(labels)]
            yield replace(self, sample={**self.sample, "labels": alone}, tokens=(token,))


def encode_question(encoder: AnswersEncoder, question: Question, answer: str, number: int) -> Asked:
    """Tokenises a question and its answer.

    Args:
        encoder: that of the training data.
        question: asked.
        answer: to it.
        number: of the question, for messages, from 1.

    Returns:
        The sample.

    Raises:
        SourceError: if its span is no part of the answer, or nothing counts within the length at
            which samples are cut.
    """
    encoder, placed = _placed(encoder, question, answer, number)
    written = encoder.written(placed)
    written = replace(written, spans=written.spans[-1:])  # earlier answers of a conversation do not
    if question.span is not None:
        written = _narrowed(written, answer, question.span, placed[0])
    try:
        sample = tokenised(encoder.tokenizer, written, encoder.max_length, placed)
    except UnusableError as error:
        raise SourceError(
            f"{placed[0]}: nothing of the answer counts within max_length={encoder.max_length:,}, "
            "the tokens at which the training data was cut. Give a shorter prompt, or an answer "
            "that is not empty."
        ) from error
    prompt = question.prompt
    if prompt is None:
        prompt = "\n".join(f"{m['role']}: {m['content']}" for m in question.conversation)
    counted = [label for label in sample["labels"][1:] if label != IGNORED]
    return Asked(prompt, answer, sample, tuple(encoder.tokenizer.decode([t]) for t in counted))


def _placed(
    encoder: AnswersEncoder, question: Question, answer: str, number: int
) -> tuple[AnswersEncoder, Placed]:
    """A question as a record of the training data, and what reads it."""
    place = Place(Path("questions"), "question", number)
    says = {"role": "assistant", "content": answer}
    if isinstance(encoder, ChatEncoder):
        return encoder, (place, {encoder.messages: [*question.conversation, says]})
    if question.prompt is None:
        raise SourceError(
            f"{place}: it is a conversation, and the training data are prompts and answers. Ask "
            "with a prompt."
        )
    if encoder.prompt is None:  # whole texts; of a question the answer counts
        encoder = replace(encoder, prompt="prompt", answer="answer")
    record: dict[str, Any] = {str(encoder.prompt): question.prompt, encoder.answer: answer}
    return encoder, (place, record)


def _narrowed(written: Written, answer: str, span: str, place: Place) -> Written:
    """Of the answer what stands in the span, wherever that occurs."""
    spans = [
        (start + first, start + first + len(span))
        for start, stop in (_said(written.text, answer, *turn) for turn in written.spans)
        for first in _places(written.text[start:stop], span)
    ]
    if not spans:
        raise SourceError(f"{place}: {brief(span)} is no part of the answer {brief(answer)}.")
    return replace(written, spans=spans, end_counts=False)


def _said(text: str, answer: str, start: int, stop: int) -> tuple[int, int]:
    """The answer within its turn, without what a template writes behind it."""
    for content in (answer, answer.strip()):
        first = text.find(content, start, stop)
        if first >= 0:
            return first, first + len(content)
    return start, stop  # the template changes it


def _places(text: str, part: str) -> Iterator[int]:
    first = text.find(part) if part else -1
    while first >= 0:
        yield first
        first = text.find(part, first + 1)
