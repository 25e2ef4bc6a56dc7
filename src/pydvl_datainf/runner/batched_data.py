"""Batches that can be read in any order: what a run needs of test and training data."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pydvl_datainf.batches import Batch, batch_length, batch_named, batch_to, check_batch
from pydvl_datainf.errors import SourceError
from pydvl_datainf.gradients.sources import has_fixed_order
from pydvl_datainf.objectives import without_images

BATCH_SIZE = 32
"""Samples in a batch of a dataset for which the caller named no number."""


class BatchedData(Protocol):
    """Batches, each of which can be read at any time, with the same samples every time."""

    def __len__(self) -> int:
        """The number of batches."""
        ...

    def read(self, i: int) -> Any:
        """Reads batch i."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedBatches:
    """The batches of a DataLoader, read without it and so in any order.

    Args:
        dataset: map-style.
        indices: for each batch the indices of its samples; or one index, where the dataset holds
            whole batches.
        collate: makes a batch of samples.
    """

    dataset: Any
    indices: Sequence[Any]
    collate: Any

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, i: int) -> Any:
        """Reads batch i, in this process.

        Args:
            i: which batch.

        Returns:
            The batch.

        Raises:
            SourceError: if it has not as many samples as were drawn for it.
        """
        chosen = self.indices[i]
        if not isinstance(chosen, list):
            return self.collate(self.dataset[chosen])
        at_once = getattr(self.dataset, "__getitems__", None)
        made = self.collate(at_once(chosen) if at_once else [self.dataset[j] for j in chosen])
        length = batch_length(check_batch(without_images(made)))
        if length != len(chosen):
            raise SourceError(
                f"Batch {i} has {length} samples where {len(chosen)} were drawn, so "
                "results could not be told apart. Use a collate_fn that neither joins nor drops "
                "samples (in trl packing=False, padding_free=False)."
            )
        return made


@dataclass(frozen=True, slots=True)
class ListedBatches:
    """Batches that are in memory.

    Args:
        batches: (x, y) pairs or mappings of tensors.
    """

    batches: Sequence[Any]

    def __len__(self) -> int:
        return len(self.batches)

    def read(self, i: int) -> Any:
        """The batch."""
        return self.batches[i]


@dataclass(frozen=True, slots=True)
class DaskBatches:
    """A pair of Dask arrays; one chunk along the samples is one batch.

    Args:
        x: inputs, in one chunk along all dimensions but the first.
        y: targets, chunked like x.
    """

    x: Any
    y: Any

    @classmethod
    def from_arrays(cls, x: Any, y: Any) -> "DaskBatches":
        """Aligns the chunks of two arrays.

        Args:
            x: inputs (n, ...).
            y: targets (n, ...).

        Returns:
            The samples.

        Raises:
            SourceError: if the chunks' sizes are unknown or the lengths differ.
        """
        if any(np.isnan(size) for array in (x, y) for size in array.chunks[0]):
            raise SourceError(
                "The Dask arrays have chunks of unknown size. Call .compute_chunk_sizes() first."
            )
        if x.shape[0] != y.shape[0]:
            raise SourceError(f"x has {x.shape[0]} samples and y has {y.shape[0]}.")
        whole = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
        aligned = {0: whole.chunks[0]} | dict.fromkeys(range(1, y.ndim), -1)
        return cls(whole, y.rechunk(aligned))

    def __len__(self) -> int:
        return len(self.x.chunks[0])

    def read(self, i: int) -> Any:
        """Computes one chunk, in this thread."""
        return tuple(
            torch.from_numpy(np.array(array.blocks[i].compute(scheduler="synchronous")))
            for array in (self.x, self.y)
        )


def as_batched(data: Any, batch_size: int | None, what: str) -> BatchedData:
    """Makes test or training data readable in any order.

    Args:
        data: a map-style dataset, a DataLoader over one in fixed order, a list of batches, one
            batch of tensors, or a pair of Dask arrays.
        batch_size: samples in a batch of a dataset; None = `BATCH_SIZE`.
        what: how messages call the data.

    Returns:
        Its batches.

    Raises:
        SourceError: if the order is random, or single batches cannot be reached.
    """
    if isinstance(data, DataLoader):
        return _from_loader(data, what)
    if isinstance(data, Mapping):
        return ListedBatches([data])
    if isinstance(data, tuple | list) and len(data) == 2:
        if all(hasattr(side, "__dask_graph__") for side in data):
            return DaskBatches.from_arrays(*data)
        if all(isinstance(side, Tensor) for side in data):
            return ListedBatches([data])
    if isinstance(data, IterableDataset):
        raise SourceError(_NO_STREAMS.format(what))
    if isinstance(data, Sequence) and not isinstance(data, Dataset | str):
        return ListedBatches(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str):
        return _from_loader(DataLoader(data, batch_size or BATCH_SIZE), what)
    raise SourceError(
        f"The {what} data is a {type(data).__name__}. Pass a dataset, a DataLoader with "
        "shuffle=False, a list of batches, or a pair of Dask arrays."
    )


_NO_STREAMS = (
    "The {} data is a stream (IterableDataset), of which a run cannot read single batches, as it "
    "must to go on after a stop. Write it to disk first, or pass a map-style dataset."
)


def _from_loader(loader: DataLoader[Any], what: str) -> LoadedBatches:
    if isinstance(loader.dataset, IterableDataset):
        raise SourceError(_NO_STREAMS.format(what))
    if not has_fixed_order(loader):
        raise SourceError(
            f"The {what} loader yields the samples in random order, so results per sample could "
            "not be told apart. Use a DataLoader with shuffle=False."
        )
    groups: Iterable[Any] = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return LoadedBatches(loader.dataset, list(groups), loader.collate_fn)


@dataclass(frozen=True, slots=True)
class BatchIndex:
    """What a first look at all batches found.

    Args:
        lengths: samples in each batch.
        digests: a checksum of each batch.
    """

    lengths: Sequence[int]
    digests: Sequence[str]

    @property
    def n(self) -> int:
        """The number of samples."""
        return sum(self.lengths)

    @property
    def fingerprint(self) -> str:
        """One checksum of all batches, in their order."""
        return hashlib.blake2b("".join(self.digests).encode(), digest_size=8).hexdigest()


def index_batches(
    samples: BatchedData, start: int, stop: int, checked: Callable[[Any], Batch] = check_batch
) -> list[tuple[int, str]]:
    """Reads batches `start` to `stop` for the first time.

    Args:
        samples: all batches.
        start: the first batch.
        stop: the batch after the last.
        checked: makes every tensor of a batch lead with the samples.

    Returns:
        For each of them its length and its checksum.
    """
    batches = (checked(samples.read(i)) for i in range(start, stop))
    return [(batch_length(batch), _digest(batch)) for batch in batches]


def read_again(
    samples: BatchedData, survey: BatchIndex, i: int, checked: Callable[[Any], Batch] = check_batch
) -> Batch:
    """Reads a batch and compares it with what the first look saw.

    Args:
        samples: all batches.
        survey: what the first look found.
        i: which batch.
        checked: makes every tensor of a batch lead with the samples.

    Returns:
        The batch.

    Raises:
        SourceError: if it differs.
    """
    batch = checked(samples.read(i))
    if _digest(batch) != survey.digests[i]:
        raise SourceError(
            f"Batch {i} differs between two reads, so no result could belong to it. The dataset "
            "must give the same samples each time: switch random augmentation off."
        )
    return batch


def _digest(batch: Batch) -> str:
    summed = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(batch_named(batch_to(batch, torch.device("cpu"))).items()):
        summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        summed.update(data)
    return summed.hexdigest()


Cut = tuple[int, int, int]
"""Samples `start` to `stop` (exclusive) of one batch: (batch, start, stop)."""


def cut_batches(lengths: Sequence[int], wanted: slice, step: int) -> Iterator[Cut]:
    """Cuts the batches that hold some samples into parts that hold no others.

    Args:
        lengths: samples in each batch.
        wanted: from which sample to which.
        step: the largest number of samples in a part.

    Yields:
        Parts, in the order of the samples.
    """
    stops = accumulate(lengths)
    for batch, (length, stop) in enumerate(zip(lengths, stops, strict=True)):
        first = max(wanted.start - (stop - length), 0)
        last = min(wanted.stop - (stop - length), length)
        for start in range(first, last, step):
            yield batch, start, min(start + step, last)
