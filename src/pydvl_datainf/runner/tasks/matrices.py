"""Vectors of queries as flat matrices in the store, read and written chunk by chunk."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.results.plan import Plan, Tiling
from pydvl_datainf.runner.tasks.context import Context, device_of
from pydvl_datainf.runner.worker_inputs import Inputs

VECTORS = f"{WORK}/vectors"


def vectors_name(piece: int) -> str:
    """The array of the gradients of queries in a piece of blocks."""
    return f"{VECTORS}/{piece}"


def read_vectors(context: Context, inputs: Inputs, p: int, queries: slice) -> Tensor:
    """Gradients of queries in a piece of blocks, or mean gradients of groups of them, (b, d)."""
    flat = read_matrix(context, inputs, vectors_name(p), queries)
    if context.spec.codes is not None:
        counts = np.bincount(context.spec.codes)[queries]
        flat /= torch.from_numpy(counts).to(flat)[:, None]
    return flat


def read_matrix(context: Context, inputs: Inputs, name: str, queries: slice) -> Tensor:
    """An array (m, d), or the sum over the parts of an array (parts, m, d), chunk by chunk.

    Args:
        context: of the run.
        inputs: the model.
        name: of the array.
        queries: from which to which.

    Returns:
        The matrix, where the model is.
    """
    array = context.store.array(name)
    dtype, width = getattr(torch, context.spec.precision), array.shape[-1]
    # In memory of torch's own, whose alignment does not change the bits of products.
    flat = torch.zeros(queries.stop - queries.start, width, dtype=dtype, device=device_of(inputs))
    parts: list[tuple[int, ...]] = (
        [()] if array.ndim == 2 else [(p,) for p in range(array.shape[0])]
    )
    for rows, columns in _chunks(context.spec.plan, queries, width):
        target = flat[rows.start - queries.start : rows.stop - queries.start, columns]
        for part in parts:
            read = context.store.read(name, (*part, rows, columns))
            target += torch.from_numpy(read).to(flat.device)
    return flat


def write_matrix(context: Context, name: str, flat: Tensor, queries: slice, *part: int) -> None:
    """Writes into an array (m, d), or into a part of an array (parts, m, d), chunk by chunk."""
    for rows, columns in _chunks(context.spec.plan, queries, flat.shape[1]):
        values = flat[rows.start - queries.start : rows.stop - queries.start, columns]
        context.store.write(name, (*part, rows, columns), values.cpu().numpy())


def _chunks(plan: Plan, queries: slice, width: int) -> Iterator[tuple[slice, slice]]:
    """The chunks of a matrix of vectors; several at once would be copied at once."""
    for start in range(queries.start, queries.stop, plan.test_tile):
        rows = slice(start, min(start + plan.test_tile, queries.stop))
        for columns in Tiling(width, plan.columns):
            yield rows, columns
