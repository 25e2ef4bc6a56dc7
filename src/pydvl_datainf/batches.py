"""What a batch may be: an (x, y) pair of tensors, or a mapping of tensors that carries its labels.

Every tensor of a batch has the samples along its first dimension; what has not, such as the images
of all samples in a row, is made so first (`objectives.ImageLayout`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pydvl_datainf.errors import BatchError

Pair: TypeAlias = tuple[Tensor, Tensor]
Batch: TypeAlias = Pair | Mapping[str, Tensor]


PACKED = frozenset(
    {"seq_lengths", *(f"{name}_{side}" for name in ("cu_seq_lens", "max_length") for side in "qk")}
)
"""What collators name that put samples into one row."""


def check_batch(batch: Any) -> Batch:
    """Checks that `batch` is of one of the two kinds, with as many samples in every tensor.

    Args:
        batch: what a data loader yielded or a caller passed.

    Returns:
        The batch as a plain tuple (x, y) or a plain dict.

    Raises:
        BatchError: if it is anything else, has no samples, or holds tensors of different lengths.
    """
    checked: Batch
    if isinstance(batch, Mapping):
        checked = dict(batch)
        _check_samples_apart(checked)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        checked = (batch[0], batch[1])
    else:
        raise BatchError(
            "A batch is an (x, y) pair of tensors or a mapping of tensors, got "
            f"{_describe(batch)}. Give the data loader a collate_fn that returns one of the two."
        )
    lengths = {}
    for name, tensor in batch_named(checked).items():
        if not isinstance(tensor, Tensor):
            raise BatchError(
                f"'{name}' of the batch is {_describe(tensor)}, not a tensor. Convert it in the "
                "collate_fn, or leave it out."
            )
        if tensor.ndim == 0:
            raise BatchError(
                f"'{name}' of the batch is a tensor without dimensions; every tensor of a batch "
                "has the samples along its first dimension (for a single sample, unsqueeze(0))."
            )
        lengths[name] = tensor.shape[0]
    if len(set(lengths.values())) > 1:
        raise BatchError(
            f"The tensors of the batch differ in their number of samples: {lengths}. Where images "
            "or the like follow one another, put 'NAME_rows' beside the tensor NAME: the number of "
            "its rows that belong to each sample."
        )
    if 0 in lengths.values():
        raise BatchError("The batch has no samples; drop empty batches.")
    return checked


def _check_samples_apart(named: Mapping[str, Any]) -> None:
    """Raises if a mapping is empty, or has several samples in one row."""
    if not named:
        raise BatchError(
            "The batch is an empty mapping; it needs the model's inputs and the labels."
        )
    joined = sorted((named.keys() & PACKED) | _telling_of_several(named))
    if joined:
        raise BatchError(
            f"The batch joins samples in one row ({', '.join(joined)} tell where each begins), so "
            "that they have no losses of their own. Switch packing off: in trl packing=False and "
            "padding_free=False; in transformers another collator than DataCollatorWithFlattening."
        )


def _telling_of_several(named: Mapping[str, Any]) -> set[str]:
    """Names of tensors (B, T) by which a row has several samples: numbers of them, or positions."""
    told = set()
    index, positions = named.get("seq_idx"), named.get("position_ids")
    if isinstance(index, Tensor) and index.ndim == 2 and bool((index[:, 1:] > index[:, :1]).any()):
        told.add("seq_idx")
    if isinstance(positions, Tensor) and positions.ndim == 2:
        # A single 0 may be padding, which has any position.
        begins = (positions[:, :-1] == 0) & (positions[:, 1:] == 1)
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == positions.shape:
            begins = begins & mask[:, :-1].bool()
        if bool((begins.sum(1) > 1).any()):
            told.add("position_ids")
    return told


def batch_length(batch: Batch) -> int:
    """The number of samples."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


def slice_batch(batch: Batch, start: int, stop: int | None) -> Batch:
    """Samples `start` to `stop` (exclusive), as views."""
    return _map(lambda tensor: tensor[start:stop], batch)


def take_batch(batch: Batch, positions: Tensor) -> Batch:
    """The samples at some positions, as copies."""
    return _map(lambda tensor: tensor[positions.to(tensor.device)], batch)


def reversed_batch(batch: Batch) -> Batch:
    """The samples in the opposite order."""
    return _map(lambda tensor: tensor.flip(0), batch)


def split_batch(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Pieces of at most `size` samples, in order; the batch itself where `size` is None.

    Args:
        batch: a checked batch of B samples.
        size: positive number of samples, or None.

    Yields:
        Batches whose lengths add up to B.
    """
    length = 0 if size is None else batch_length(batch)
    if size is None or size >= length:
        yield batch
        return
    for start in range(0, length, size):
        yield slice_batch(batch, start, start + size)


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, detached from any graph and from inference mode."""
    with torch.inference_mode(False):
        return _map(
            lambda t: t.clone().to(device) if t.is_inference() else t.detach().to(device), batch
        )


def copy_batch(batch: Batch) -> Batch:
    """A copy, for models that work on their input in place."""
    return _map(torch.clone, batch)


def signature(batch: Batch) -> tuple[tuple[str, torch.dtype, int], ...]:
    """What a model may branch on: names, dtypes and numbers of dimensions of the tensors."""
    return tuple((name, t.dtype, t.ndim) for name, t in sorted(batch_named(batch).items()))


def _map(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    if isinstance(batch, Mapping):
        return {name: function(tensor) for name, tensor in batch.items()}
    x, y = batch
    return function(x), function(y)


def batch_named(batch: Batch) -> Mapping[str, Tensor]:
    """The tensors by name; those of a pair are called x and y."""
    return batch if isinstance(batch, Mapping) else dict(zip("xy", batch, strict=True))


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} items"
    return f"a {type(value).__name__}"


def as_arguments(batch: Batch) -> tuple[Any, Tensor | None]:
    """Inputs and labels as influence models are called: x and y, or a mapping and None."""
    return (batch, None) if isinstance(batch, Mapping) else batch


def as_batches(data: Any) -> Any:
    """A single batch as data of one batch; loaders as they are."""
    is_pair = isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor)
    return [data] if isinstance(data, Mapping) or is_pair else data
