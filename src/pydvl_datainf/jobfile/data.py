"""What the data of a job becomes: samples, columns, and where the model is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from pydvl_datainf.huggingface.builder import Files
from pydvl_datainf.huggingface.records import Place
from pydvl_datainf.objectives import Objective

MOST_NAMED = 100
"""Samples of a kind whose lines are told."""


class JobSamples(Protocol):
    """Samples that can be read one by one and in batches."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        """One sample."""
        ...

    @property
    def lengths(self) -> list[int]:
        """For each sample what its gradient takes, in units of the material."""
        ...

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Makes a batch."""
        ...

    def to_loader(self, batch_size: int) -> DataLoader[Any]:
        """Batches in the order of the samples."""
        ...


@dataclass(frozen=True, slots=True)
class Side:
    """Test or training data.

    Args:
        samples: as the model takes them.
        columns: what is stored of them beside their scores.
        ids: their names, where a column holds them.
        left_out: places of samples of which nothing counts.
        empty: places of samples whose answer is empty.
    """

    samples: JobSamples
    columns: Mapping[str, Sequence[Any]]
    ids: Sequence[Any] | None
    left_out: Sequence[Place] = ()
    empty: Sequence[Place] = ()


def placed_in_words(places: Sequence[Place]) -> str:
    """How many samples, and where they stand, or the first of many.

    Args:
        places: of samples, at least one.

    Returns:
        Such as "2 (lines 3, 7)".
    """
    numbers = ", ".join(str(place.number) for place in places[:MOST_NAMED])
    more = ", ..." if len(places) > MOST_NAMED else ""
    return f"{len(places):,} ({places[0].what}{'s' * (len(places) > 1)} {numbers}{more})"


@dataclass(frozen=True, slots=True)
class Material:
    """All that a job names, read.

    Args:
        files: where the model is.
        objective: of the task.
        test: data.
        train: data.
        heads: modules that the adapter's training changed whole.
        unit: in which lengths are counted.
    """

    files: Files
    objective: Objective
    test: Side
    train: Side
    heads: tuple[str, ...]
    unit: str
