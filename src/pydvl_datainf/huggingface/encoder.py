"""What turns a record into a tokenised sample, and refuses one of which no token counts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.ignored import IGNORED

Encoded: TypeAlias = Mapping[str, Any]
"""One sample: lists with an entry for each token, or numbers of the sample as a whole."""


class UnusableError(SourceError):
    """A sample of which no token counts."""


class Encoder(Protocol):
    """What turns a record into one tokenised sample."""

    def encode(self, placed: Placed) -> Encoded:
        """Tokenises a record; an error names its place."""
        ...

    def shown(self, placed: Placed) -> dict[str, Any]:
        """What is stored of a record beside its scores: texts and labels, by column name."""
        ...


def check_some_count(labels: Sequence[int], max_length: int, placed: Placed) -> None:
    """Checks that a sample has a loss.

    Args:
        labels: of its tokens.
        max_length: tokens at which it was cut, for messages.
        placed: the record, for messages.

    Raises:
        UnusableError: if no token has a label.
    """
    if all(label == IGNORED for label in labels):
        raise UnusableError(
            f"{placed[0]}: no token has a label within max_length={max_length}, so the sample has "
            "no loss. Raise max_length, shorten the prompt, or leave the sample out (in a job "
            "on_unusable: skip)."
        )
