"""What the data of a job becomes: samples, columns, and where the model is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from pydvl_datainf.huggingface.builder import Files
from pydvl_datainf.huggingface.records import Placed, column
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.objectives import Objective


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
    """

    samples: JobSamples
    columns: Mapping[str, Sequence[Any]]
    ids: Sequence[Any] | None


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
    job: Job, records: Sequence[Placed], shown: Callable[[Placed], Mapping[str, Any]]
) -> tuple[dict[str, list[Any]], list[Any] | None]:
    """What is stored of the samples of one side, and their names.

    Args:
        job: names the columns.
        records: of the side.
        shown: what a task shows of a record.

    Returns:
        For each column its values, and the ids, or None where no column holds them.
    """
    rows = [
        {**shown(placed), **{name: column(placed, name) for name in job.columns.show}}
        for placed in records
    ]
    ids = job.columns.id
    named = None if ids is None else [column(placed, ids) for placed in records]
    return {name: [row[name] for row in rows] for name in rows[0]}, named
