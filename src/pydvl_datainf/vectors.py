"""Vectors cut into blocks: for each block, in order, a matrix with one vector a row."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

BlockVectors: TypeAlias = "OrderedDict[str, Tensor]"
"""For each block vectors as rows, shape (B, d_l)."""


NEAR = 2**17
"""Numbers that stay in a processor's cache while they are computed with, in float64 too."""


def rows_at_once(rows: Tensor) -> int:
    """How many of some rows to compute with at once: more would take new pages each time."""
    is_near = rows.device.type == "cpu"
    return max(1, NEAR // max(1, rows.shape[1])) if is_near else max(1, len(rows))


def length(vectors: Mapping[str, Tensor]) -> int:
    """B, the number of vectors."""
    return next(iter(vectors.values())).shape[0]


def n_bytes(vectors: Mapping[str, Tensor]) -> int:
    """The memory that the vectors take."""
    return sum(v.numel() * v.element_size() for v in vectors.values())


def products(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> BlockVectors:
    """Per block the inner products of rows of `left` (m, d_l) with rows of `right` (b, d_l)."""
    return OrderedDict((block, product(v, right[block])) for block, v in left.items())


def product(left: Tensor, right: Tensor) -> Tensor:
    """Products of rows of `left` (m, d) with rows of `right` (b, d), in the wider dtype."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    left, right = left.to(dtype), right.to(dtype)
    # The longer side first: that is up to a third faster on a CPU.
    return left @ right.mT if len(left) >= len(right) else (right @ left.mT).mT


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum over blocks."""
    first, *others = parts.values()
    if not others:
        return first
    result = first.clone()
    for part in others:
        result += part
    return result


def widened(vectors: Mapping[str, Tensor]) -> BlockVectors:
    """The vectors in float64."""
    return OrderedDict((block, v.double()) for block, v in vectors.items())


def narrowed(vectors: Mapping[str, Tensor], dtype: torch.dtype) -> BlockVectors:
    """The vectors in another dtype."""
    return OrderedDict((block, v.to(dtype)) for block, v in vectors.items())


def concatenated(parts: Sequence[BlockVectors], dim: int = 0) -> BlockVectors:
    """Each block's matrices, joined along a dimension."""
    if len(parts) == 1:
        return parts[0]
    return OrderedDict((block, torch.cat([p[block] for p in parts], dim)) for block in parts[0])


def grouped(chunks: Iterable[BlockVectors], most_bytes: int) -> Iterator[BlockVectors]:
    """Joins neighbouring chunks until they take `most_bytes` or more.

    Args:
        chunks: vectors, all with the same blocks.
        most_bytes: after which a group ends; a single chunk may take more.

    Yields:
        The same vectors in the same order, in fewer pieces.
    """
    group: list[BlockVectors] = []
    size = 0
    for vectors in chunks:
        group.append(vectors)
        size += n_bytes(vectors)
        if size >= most_bytes:
            yield concatenated(group)
            group, size = [], 0
    if group:
        yield concatenated(group)
