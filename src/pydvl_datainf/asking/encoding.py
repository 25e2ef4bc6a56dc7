"""Questions tokenised as the training data was; of an answer a span, or one token, may count."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pydvl_datainf.asking.questions import Question, place_of
from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import AnswerEncoder, ChatEncoder
from pydvl_datainf.huggingface.answers import Written, tokenised
from pydvl_datainf.huggingface.chat import PRIVATE
from pydvl_datainf.huggingface.encoder import UnusableError
from pydvl_datainf.huggingface.record_values import brief
from pydvl_datainf.huggingface.records import Place, Placed
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
        counted: positions among the labels of the tokens that count; none of a classification.
        tokens: these tokens, as text.
    """

    prompt: str
    answer: str
    sample: Encoded
    counted: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()

    def by_token(self) -> Iterator["Asked"]:
        """The same once for each token that counts, of which that one alone counts.

        Yields:
            Their losses add up to that of the whole answer, if its tokens' losses are added.
        """
        labels = self.sample["labels"]
        for t, token in zip(self.counted, self.tokens, strict=True):
            alone = [label if i == t else IGNORED for i, label in enumerate(labels)]
            sample = {**self.sample, "labels": alone}
            yield replace(self, sample=sample, counted=(t,), tokens=(token,))


def encode_question(
    encoder: AnswersEncoder,
    question: Question,
    answer: str,
    number: int,
    ends: Collection[int] | None = None,
) -> Asked:
    """Tokenises a question and its answer.

    Args:
        encoder: that of the training data.
        question: asked.
        answer: to it.
        number: of the question, for messages, from 1.
        ends: tokens by which a model ended the answer: the end that is written behind it counts
            where it holds one of them; None = it counts, as it does in the training data.

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
    elif ends is not None:
        mark = next(character for character in PRIVATE if character not in written.text)
        marked = encoder.written(_placed(encoder, question, mark, number)[1])
        written = _ended(encoder, written, marked.text.rpartition(mark)[2], ends)
    try:
        sample = tokenised(encoder.tokenizer, written, encoder.max_length, placed)
    except UnusableError as error:
        raise SourceError(none_counts(placed[0], encoder.max_length)) from error
    prompt = question.prompt
    if prompt is None:
        prompt = "\n".join(f"{m['role']}: {m['content']}" for m in question.conversation)
    # Nothing predicts the first token.
    counted = tuple(t for t, label in enumerate(sample["labels"]) if t and label != IGNORED)
    tokens = tuple(encoder.tokenizer.decode([sample["labels"][t]]) for t in counted)
    return Asked(prompt, answer, sample, counted, tokens)


def _placed(
    encoder: AnswersEncoder, question: Question, answer: str, number: int
) -> tuple[AnswersEncoder, Placed]:
    """A question as a record of the training data, and what reads it."""
    place = place_of(number)
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
        (start + first, start + stop)
        for start, end in (_said(written.text, answer, *turn) for turn in written.spans)
        for first, stop in spans_of(span, written.text[start:end])
    ]
    if not spans:
        raise SourceError(no_part(span, answer, place))
    return replace(written, spans=spans, end_counts=False)


def _ended(encoder: AnswersEncoder, written: Written, end: str, ends: Collection[int]) -> Written:
    """The last turn, of which the end counts where a model wrote it too."""
    of_end = encoder.tokenizer(end, add_special_tokens=False)["input_ids"]
    if set(ends) & {*of_end, *written.end}:
        return written
    stop = len(written.text) - len(end)
    spans = [(start, min(until, stop)) for start, until in written.spans]
    return replace(written, spans=spans, end_counts=False)


def _said(text: str, answer: str, start: int, stop: int) -> tuple[int, int]:
    """The answer within its turn, without what a template writes behind it."""
    for content in (answer, answer.strip()):
        first = text.find(content, start, stop)
        if first >= 0:
            return first, first + len(content)
    return start, stop  # the template changes it


def spans_of(part: str, text: str) -> Iterator[tuple[int, int]]:
    """Where a part stands in a text.

    Args:
        part: looked for; an empty one stands nowhere.
        text: in which.

    Yields:
        From which to which character, also where places overlap.
    """
    first = text.find(part) if part else -1
    while first >= 0:
        yield first, first + len(part)
        first = text.find(part, first + 1)


def no_part(span: str, answer: str, place: Place) -> str:
    """What is wrong with a span that the answer does not hold."""
    return f"{place}: {brief(span)} is no part of the answer {brief(answer)}."


def none_counts(place: Place, max_length: int) -> str:
    """What is wrong with a question of whose answer nothing is left."""
    return (
        f"{place}: nothing of the answer counts within max_length={max_length:,}, the tokens at "
        "which the training data was cut. Give a shorter prompt, or an answer that is not empty."
    )
