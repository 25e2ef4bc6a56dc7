"""Where the rows of the training samples come from, more than once: memory, or computed again."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import psutil
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from tqdm.auto import tqdm

from pydvl_datainf.batches import (
    Batch,
    batch_length,
    batch_named,
    batch_to,
    slice_batch,
    split_batch,
)
from pydvl_datainf.errors import SourceError
from pydvl_datainf.fingerprint import DataChecksum
from pydvl_datainf.gradients.engines import GradientEngine
from pydvl_datainf.inverse.damping import SquaredNorms, squared_norms
from pydvl_datainf.objectives import ImageLayout
from pydvl_datainf.vectors import BlockVectors, length, n_bytes

RowsKept: TypeAlias = Literal["memory", "recompute", "compressed", "auto"]

MEMORY_SHARE = 0.25
"""The share of the free memory, at the start of `fit`, up to which rows="auto" keeps rows."""


class RowSource(Protocol):
    """The rows of n training samples, chunk by chunk, in one order per pass."""

    @property
    def n(self) -> int:
        """The number of training samples."""
        ...

    def chunks(self) -> Iterator[BlockVectors]:
        """Yields for each chunk of b samples the rows of every block, shape (b, d_l)."""
        ...

    def to(self, device: torch.device) -> "RowSource":
        """The same rows on another device."""
        ...


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads batches from training data and turns them into rows.

    Args:
        data: a DataLoader, or any iterable of batches that can be iterated over again.
        engine: computes rows.
        device: where batches are sent.
        batch_size: the largest number of samples in one gradient computation; None = as given.
        progress: whether to show a progress bar for each pass over the data.
        seen: to which the batches of every pass are added, where it is there.
        images: how the images of a batch follow from its tokens.
    """

    data: Iterable[Any]
    engine: GradientEngine
    device: torch.device
    batch_size: int | None = None
    progress: bool = False
    seen: DataChecksum | None = None
    images: ImageLayout = field(default_factory=ImageLayout)

    def batches(self, what: str = "data") -> Iterator[Batch]:
        """Yields checked batches of at most `batch_size` samples, on the device."""
        # Of an iterator: tqdm would ask the data for two, which starts its workers twice.
        bar = tqdm(
            iter(self.data), what, _length_of(self.data), leave=False, disable=not self.progress
        )
        for given in bar:
            batch = self.images.by_sample(given)
            if self.seen is not None:
                self.seen.add(batch_named(batch))
            yield from split_batch(batch_to(batch, self.device), self.batch_size)

    def rows(self) -> Iterator[BlockVectors]:
        """Yields the rows of each batch."""
        for batch in self.batches("gradients"):
            yield self.engine.rows(batch)

    def without_workers(self) -> "Reader":
        """The same reader, without worker processes: daemonic processes cannot start them."""
        data = _without_workers(self.data)
        return replace(self, data=data, progress=False, seen=None)


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """Rows that were computed once and kept.

    Args:
        kept: for each chunk its rows.
        n: the number of samples in all chunks.
    """

    kept: list[BlockVectors]
    n: int

    def chunks(self) -> Iterator[BlockVectors]:
        """Yields the kept chunks in the order in which they were computed."""
        yield from self.kept

    def to(self, device: torch.device) -> "MemoryRows":
        """Moves the rows; returns a new source."""
        moved = [type(c)((block, v.to(device)) for block, v in c.items()) for c in self.kept]
        return MemoryRows(moved, self.n)


@dataclass(frozen=True, slots=True)
class RecomputedRows:
    """Rows that every pass computes again from the data: memory for one chunk, however large n.

    Args:
        reader: reads the data.
        n: the number of samples that every pass must count.
    """

    reader: Reader
    n: int

    def chunks(self) -> Iterator[BlockVectors]:
        """Computes the rows batch by batch.

        Yields:
            The rows of one batch.

        Raises:
            SourceError: if this pass counts another number of samples than the first.
        """
        count = 0
        for rows in self.reader.rows():
            count += length(rows)
            yield rows
        if count != self.n:
            raise SourceError(
                f"The training data yielded {count} samples where the first pass had {self.n}. Use "
                'a loader that yields the same samples on every pass, or rows="memory".'
            )

    def to(self, device: torch.device) -> "RecomputedRows":
        """A source that computes on another device."""
        return RecomputedRows(replace(self.reader, device=device, seen=None), self.n)

    def __reduce__(self) -> tuple[type["RecomputedRows"], tuple[Reader, int]]:
        return RecomputedRows, (self.reader.without_workers(), self.n)


@dataclass(slots=True)
class _Tally:
    """What a first pass adds up: samples, squared norms, and the rows as long as they fit."""

    budget: float
    n: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: list[BlockVectors] | None = field(default_factory=list)

    def add(self, rows: BlockVectors) -> None:
        self.n += length(rows)
        for block, vectors in rows.items():
            self.sums[block] = self.sums.get(block, 0) + squared_norms(vectors).sum()
        if self.kept is not None:
            self.kept.append(rows)
            self.budget -= n_bytes(rows)
            if self.budget < 0:
                self.kept = None

    @property
    def norms(self) -> SquaredNorms:
        return SquaredNorms({block: total.item() for block, total in self.sums.items()}, self.n)


def read_rows(
    reader: Reader, keep: RowsKept, *, need_norms: bool
) -> tuple[RowSource, SquaredNorms | None]:
    """Reads the training data for the first time.

    Args:
        reader: reads the data.
        keep: "memory" keeps all rows, "recompute" none, "auto" all or none: as long as they take
            less than `MEMORY_SHARE` of the memory that is free now.
        need_norms: whether squared norms are needed; if not, "recompute" only counts the samples.

    Returns:
        A source of the rows, and the sums of squared norms where they were computed.

    Raises:
        SourceError: if the data can be read only once, is empty, or would have to be read again
            although its loader draws other samples each time.
    """
    check_readable(reader.data)
    if keep == "recompute":
        check_repeatable(reader.data)
    if keep == "recompute" and not need_norms:
        n = count_samples(reader)
        return RecomputedRows(replace(reader, seen=None), n), None
    budget = {"memory": float("inf"), "recompute": 0.0}.get(keep)
    tally = _Tally(MEMORY_SHARE * _free_memory(reader.device) if budget is None else budget)
    for rows in reader.rows():
        tally.add(rows)
    n = _check_some(tally.n)
    if tally.kept is None:
        check_repeatable(reader.data)
        return RecomputedRows(replace(reader, seen=None), n), tally.norms
    return MemoryRows(tally.kept, n), tally.norms


def sum_norms(source: RowSource) -> SquaredNorms:
    """Computes the sums of squared norms in one more pass."""
    tally = _Tally(budget=0.0)
    for rows in source.chunks():
        tally.add(rows)
    return tally.norms


def has_fixed_order(data: Any) -> bool:
    """Whether every pass over the data yields the samples in the same order.

    Args:
        data: a DataLoader, whose samplers are asked; streams and anything else are taken to be in
            fixed order.

    Returns:
        False for random samplers, and for samplers of unknown type that gave different orders.
    """
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return True
    sampler = _sampler(data)
    if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        return False
    if type(sampler) is SequentialSampler:
        return True
    first = list(sampler)
    return all(list(sampler) == first for _ in range(4))


def _sampler(loader: DataLoader[Any]) -> Any:
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return sampler


def check_readable(data: Any) -> None:
    """Checks that data can be read more than once.

    Args:
        data: of the training samples.

    Raises:
        SourceError: if it cannot be iterated over, or only once.
    """
    if not isinstance(data, Iterable):
        raise SourceError(
            f"The training data is a {type(data).__name__}. Pass a DataLoader or a list of batches."
        )
    if isinstance(data, Iterator):
        raise SourceError(
            "The training data is an iterator, which can be read only once. Pass a DataLoader or a "
            "list of batches."
        )


def check_repeatable(data: Any) -> None:
    """Checks that every pass yields the same samples.

    Args:
        data: of the training samples.

    Raises:
        SourceError: if a loader draws another subset of them on every pass.
    """
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return
    sampler = _sampler(data)
    drawn = isinstance(sampler, WeightedRandomSampler) or (
        isinstance(sampler, RandomSampler)
        and (sampler.replacement or sampler.num_samples != len(sampler.data_source))
    )
    batches: Any = data.batch_sampler
    drops = type(batches) is BatchSampler and batches.drop_last and not has_fixed_order(data)
    if drawn or (drops and len(sampler) % batches.batch_size):
        raise SourceError(
            "The training loader draws other samples on every pass (random with drop_last, with "
            'replacement or in part), so rows cannot be recomputed. Use rows="memory", or a loader '
            "that yields every sample."
        )


def count_samples(reader: Reader) -> int:
    """The number of samples, at least one; the first is tried out: errors come early."""
    count = 0
    for batch in reader.batches():
        if count == 0:
            reader.engine.rows(slice_batch(batch, 0, 1))
        count += batch_length(batch)
    return _check_some(count)


def _check_some(n: int) -> int:
    if n == 0:
        raise SourceError("The training data is empty; fit needs at least one sample.")
    return n


def _length_of(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a stream, or a DataLoader over one
        return None


def _free_memory(device: torch.device) -> float:
    """Bytes that are free where the rows would be kept."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + kept)  # torch keeps memory that was given back to it, to use again
    return float(psutil.virtual_memory().available)


def _without_workers(data: Any) -> Any:
    if not isinstance(data, DataLoader):
        return data
    plain = copy.copy(data)
    settings = {
        "num_workers": 0,
        "prefetch_factor": None,
        "persistent_workers": False,
        "timeout": 0,
        "worker_init_fn": None,
        "pin_memory": False,
        "_iterator": None,
        "_DataLoader__multiprocessing_context": None,
    }
    vars(plain).update(settings)  # DataLoader forbids setting some of these one by one
    return plain
