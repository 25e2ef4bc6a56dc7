"""What a model is asked, and what it is said to have answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface import read_records
from pydvl_datainf.huggingface.record_values import brief, is_text
from pydvl_datainf.huggingface.records import Place, Placed


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, or a conversation, and the answer to it.

    Args:
        prompt: what the model is asked; of a classifier the text.
        answer: what it says, of a classifier the label; None = the model is let say it.
        span: a part of the answer: only the tokens that reach into it count, wherever it stands in
            the answer; None = the whole answer counts.
        messages: a conversation in place of a prompt, mappings with role and content. Its last
            message from the assistant, if it ends with that, is the answer.
        id: names it in the result.
        text_pair: of a classifier of pairs the second text.

    Raises:
        SourceError: if there is neither a prompt nor a conversation, or there are both, or a text
            is none.
    """

    prompt: str | None = None
    answer: str | None = None
    span: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    id: str | None = None
    text_pair: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise SourceError("A question is either a prompt or messages; give one of the two.")
        for name in ("prompt", "answer", "span", "id", "text_pair"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise SourceError(f"The {name} of a question must be text, got {brief(value)}.")
            if not is_text(value):
                raise SourceError(
                    f"The {name} of a question is not text: it holds half of a surrogate pair."
                )
        if self.messages is not None:
            _check_messages(self.messages)
        if self.answer is not None and self.answers_itself:
            raise SourceError("The messages end with an answer, and there is another. Give one.")

    @property
    def answers_itself(self) -> bool:
        """Whether its conversation ends with an answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"  # type: ignore[index]

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """What is asked, without the answer, as messages."""
        if self.messages is None:
            return [{"role": "user", "content": self.prompt}]
        asked = self.messages[:-1] if self.answers_itself else self.messages
        return [dict(message) for message in asked]

    @property
    def known_answer(self) -> str | None:
        """The answer, if it is given."""
        if self.messages is not None and self.answers_itself:
            return str(self.messages[-1]["content"])
        return self.answer


def _check_messages(messages: Any) -> None:
    good = isinstance(messages, list | tuple) and all(
        isinstance(m, Mapping) and all(isinstance(m.get(k), str) for k in ("role", "content"))
        for m in messages
    )
    if not good or not messages or not is_text([dict(message) for message in messages]):
        raise SourceError(
            "Messages must be a list of mappings with role and content, both texts, got "
            f"{brief(messages)}."
        )


def place_of(number: int) -> Place:
    """Where a question stands, for messages.

    Args:
        number: of the question, from 1.

    Returns:
        The place.
    """
    return Place(Path("questions"), "question", number)


def read_questions(path: Path) -> list[Question]:
    """Reads questions, an object on each line.

    Args:
        path: of a file of JSON lines with the fields of `Question`.

    Returns:
        The questions.

    Raises:
        SourceError: if it cannot be read, or a line is no question; names the line.
    """
    if path.suffix.lower() != ".jsonl":
        raise SourceError(f"{path}: questions are read from JSON lines; name a file .jsonl.")
    return [_question(placed) for placed in read_records(path)]


def _question(placed: Placed) -> Question:
    place, record = placed
    known = [field.name for field in fields(Question)]
    unknown = sorted(set(record) - set(known))
    if unknown:
        raise SourceError(
            f"{place}: '{unknown[0]}' is no field of a question; there are {', '.join(known)}."
        )
    try:
        return Question(**record)
    except SourceError as error:
        raise SourceError(f"{place}: {error}") from error
