"""What the data of a job becomes: samples, columns, and where the model is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from pydvl_datainf.errors import JobError, SourceError
from pydvl_datainf.huggingface.builder import Files
from pydvl_datainf.huggingface.records import LabelName, Place, Placed, brief, column
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.objectives import Objective

RESERVED = ("tokens", "id")
"""Columns that a result has anyway."""

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


def columns_of(
    job: Job, what: str, records: Sequence[Placed], shown: Callable[[Placed], Mapping[str, Any]]
) -> tuple[dict[str, list[Any]], list[Any] | None]:
    """What is stored of the samples of one side, and their names.

    Args:
        job: names the columns.
        what: the side, "test" or "training".
        records: of the side.
        shown: what a task shows of a record.

    Returns:
        For each column its values, and the ids, or None where no column holds them.

    Raises:
        JobError: if a column that is to be shown has a name that is taken or cannot be stored.
        SourceError: if a value cannot be stored, or an id is there twice; names the line.
    """
    own = [shown(placed) for placed in records]
    further = job.columns.show + (job.columns.show_train if what == "training" else ())
    for name in further:
        if name in own[0] or name in RESERVED or not name.isidentifier():
            raise JobError(
                f"'columns.show' names '{name}', which the result already has or cannot have as a "
                "name. Call the column something else, in letters, digits and underscores."
            )
    columns = {name: [row[name] for row in own] for name in own[0]}
    columns |= {name: _stored(name, records) for name in further}
    if job.columns.id is None:
        return columns, None
    ids = _stored(job.columns.id, records, kinds=(str, int))
    seen: set[Any] = set()
    for value, (place, _) in zip(ids, records, strict=True):
        if value in seen:
            raise SourceError(f"{place}: the id {brief(value)} is there twice.")
        seen.add(value)
    return columns, ids


def _stored(
    name: str, records: Sequence[Placed], kinds: tuple[type, ...] = (str, int, float, bool)
) -> list[Any]:
    """Values of a column, all of one kind that a result can hold."""
    read = (column(placed, name) for placed in records)
    values = [str(value) if isinstance(value, LabelName) else value for value in read]
    allowed = " or all ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
    for value, (place, _) in zip(values, records, strict=True):
        if type(value) not in kinds or _KINDS[type(value)] != _KINDS[type(values[0])]:
            raise SourceError(
                f"{place}: column '{name}' holds {brief(value)}; it must be all {allowed}."
            )
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise SourceError(f"{place}: column '{name}' holds a number beyond 64 bits.")
    return values


_KINDS = {str: "texts", int: "numbers", float: "numbers", bool: "truth values"}
