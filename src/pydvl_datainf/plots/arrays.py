"""The arrays that plots take: checked on entry, and the samples to show chosen."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pydvl_datainf.evaluation import Indices, as_array, largest

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]
Labels: TypeAlias = npt.NDArray[Any]


def checked_floats(name: str, values: npt.ArrayLike, ndim: int = 1) -> npt.NDArray[np.float64]:
    """The values in float64, if they can be drawn.

    Args:
        name: what they are called in errors.
        values: numbers with `ndim` axes.
        ndim: how many axes are needed.

    Returns:
        The same numbers.

    Raises:
        ValueError: if there are other axes, no numbers, or numbers that are not finite.
    """
    array = np.asarray(as_array(values), dtype=np.float64)
    if array.ndim != ndim or not array.size:
        raise ValueError(f"{name} must be an array of {ndim} axes, not empty; got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{(~np.isfinite(array)).sum()} of {array.size} numbers in {name} are not finite; "
            "leave them out, or finish computing them"
        )
    return array


def checked_labels(name: str, labels: npt.ArrayLike, n: int) -> Labels:
    """The labels as an array, if there is one for each of n samples.

    Args:
        name: what they are called in errors.
        labels: numbers or names, (n,).
        n: how many are needed.

    Returns:
        The same labels, (n,).

    Raises:
        ValueError: if there is another number of them.
    """
    array = as_array(labels)
    if array.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one for each sample; got {array.shape}")
    return array


def checked_mask(name: str, mask: npt.ArrayLike, n: int) -> Mask:
    """The mask as an array, if it has a truth value for each of n samples.

    Args:
        name: what it is called in errors.
        mask: truth values, (n,).
        n: how many are needed.

    Returns:
        The same mask, (n,).

    Raises:
        ValueError: if it has another shape, or holds numbers.
    """
    array = checked_labels(name, mask, n)
    if array.dtype != np.bool_:
        raise ValueError(f"{name} must be an array of bool, got {array.dtype}; use .astype(bool)")
    return array


def most_influential(influences: Floats, k: int) -> tuple[Indices, Indices]:
    """The k samples of largest and the k of smallest influence, none of them twice.

    Args:
        influences: one number for each sample, (n,).
        k: how many at each end. Where n < 2k, the larger half of the samples counts as helpful.

    Returns:
        Positions, largest first, and positions, smallest first. Of equal ones the first comes
        first.

    Raises:
        ValueError: if k is not positive.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    n = influences.size
    helpful = largest(influences, min(k, -(-n // 2)))
    others = np.setdiff1d(np.arange(n), helpful)
    return helpful, others[largest(-influences[others], k)]


def checked_captions(captions: Sequence[Any] | None, n: int) -> Sequence[Any]:
    """The captions, if there is one for each of n samples, or empty ones.

    Args:
        captions: anything that has a name, (n,), or None.
        n: how many are needed.

    Returns:
        Captions, (n,).

    Raises:
        ValueError: if there is another number of them.
    """
    if captions is not None and len(captions) != n:
        raise ValueError(f"there are {n} influences, but {len(captions)} captions")
    return [""] * n if captions is None else captions


def colour_limit(values: Floats, limit: float | None) -> float:
    """The absolute number that gets the strongest colour.

    Args:
        values: what is drawn, of any shape.
        limit: what the caller wants; None = the 99th percentile of the absolute values, or their
            largest one where that is zero.

    Returns:
        A positive number; 1 where all values are zero.

    Raises:
        ValueError: if the wanted limit is not positive.
    """
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    absolute = np.abs(values)
    return limit or float(np.percentile(absolute, 99)) or float(absolute.max()) or 1.0
