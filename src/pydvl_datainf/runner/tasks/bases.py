"""Bases of compressed rows: rows of some training samples, and what is learned from them.

The rows of this sample are whole; behind side bases they are packed, see `gradients.sided`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.batches import Batch, as_arguments, batch_length
from pydvl_datainf.gradients.compressed import Positions, joined_rows, rows_at
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.gradients.sided import small_rows, whole_squares
from pydvl_datainf.inverse.agreement import agreement, are_copies, influences_of_both
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.coordinates import least_rank
from pydvl_datainf.inverse.directions import leading_directions
from pydvl_datainf.results.arrays import BASES, WORK
from pydvl_datainf.results.layout import basis_name
from pydvl_datainf.results.plan import Tiling
from pydvl_datainf.runner.sizing import sampled_queries
from pydvl_datainf.runner.tasks.context import Context, device_of
from pydvl_datainf.runner.tasks.spec import RunSpec
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, concatenated

SAMPLE = f"{WORK}/{BASES}"
RANKS = f"{WORK}/ranks"


def sample_name(block: int) -> str:
    """The array of rows of a block kept until they are projected; behind them, of losses."""
    return f"{SAMPLE}/{block}"


def sample_parts(spec: RunSpec) -> Tiling:
    """The samples whose rows are kept, cut into as many as are computed at once."""
    return Tiling(len(_kept(spec)), spec.plan.step)


def write_sample(part: int, context: Context, inputs: Inputs) -> None:
    """Some of the rows that are kept until they are projected."""
    spec = context.spec
    place, compute = sample_parts(spec)[part], partial(_new, context, inputs)
    rows = concatenated(list(rows_at_positions(_kept(spec)[place], context, inputs, compute)))
    for b, G in enumerate(rows.values()):
        context.store.write(sample_name(b), place, G.cpu().numpy())


def write_rank(b: int, context: Context, inputs: Inputs) -> None:
    """The rank that is chosen for a block, from the rows of its sample."""
    rank = least_rank(_sampled(b, context, inputs), _compression(context.spec).largest)
    context.store.write(RANKS, slice(b, b + 1), np.array([rank]))


def write_basis(b: int, context: Context, inputs: Inputs) -> None:
    """The basis of a block, from the rows of its sample."""
    rank, _ = context.spec.basis_shapes[b]
    B = leading_directions(_sampled(b, context, inputs), rank)
    context.store.write(basis_name(b), ..., B.cpu().numpy())


def _sampled(b: int, context: Context, inputs: Inputs) -> Tensor:
    """The rows of a block that its basis is learned from, whole or small."""
    spec = context.spec
    wanted = np.isin(_kept(spec), _compression(spec).positions(spec.plan.n))
    rows = context.store.read(sample_name(b), ...)[wanted]
    block = list(spec.widths)[b]
    found = {block: torch.tensor(rows, device=device_of(inputs))}
    return small_rows(found, spec.side_blocks)[block]


def write_compression_error(_: None, context: Context, inputs: Inputs) -> None:
    """What compression changes in influences of samples that no basis was learned from.

    The inverse is taken over all rows of the sample, whole or small, and over their coordinates.
    """
    spec, device = context.spec, device_of(inputs)
    checked = np.isin(_kept(spec), _compression(spec).checked(spec.plan.n))
    wanted = torch.tensor(checked, device=device)
    vectors = concatenated(list(_queries(context, inputs)))
    found, differ = [], []
    for b, block in enumerate(spec.widths):
        rows = {block: torch.tensor(context.store.read(sample_name(b), ...), device=device)}
        G = small_rows(rows, spec.side_blocks)[block]
        is_wide = b in spec.basis_shapes
        B = torch.tensor(context.store.read(basis_name(b), ...), device=device) if is_wide else None
        λ = context.damping[block]
        differ.append(not are_copies(G[wanted]))
        squares = whole_squares(rows, spec.side_blocks) if block in spec.side_blocks else {}
        given = vectors[block], G, B, λ, wanted, squares.get(block)
        found.append(influences_of_both(spec.method, *given))
    S, T = (torch.stack(scores).double().sum(0) for scores in zip(*found, strict=True))
    context.store.write("compression_error", ..., np.array(agreement(S, T, is_ordered=any(differ))))


def _queries(context: Context, inputs: Inputs) -> Iterator[BlockVectors]:
    """Gradients of some test samples, whole or small."""

    def rows_of(given: Batch) -> BlockVectors:
        rows = context.sample_rows(inputs)
        batch = rows.batch(*as_arguments(given))
        context.gradients += batch_length(batch)
        return small_rows(rows.of(batch, rows.test_engine), context.spec.side_blocks)

    for place in sampled_queries(context.spec.test.n):
        for _, rows in context.each(inputs, inputs.test, context.spec.test, place, rows_of):
            yield rows


def whole_rows(tile: int, context: Context, inputs: Inputs) -> Iterator[tuple[slice, BlockVectors]]:
    """The whole or packed rows of a training tile: those of the sample as they are in the store.

    Args:
        tile: which.
        context: of the run.
        inputs: the model and the data.

    Yields:
        From which sample of the tile to which, their rows, and under `LOSS` their losses.
    """
    spec, wanted = context.spec, context.spec.plan.train[tile]
    assert inputs.train is not None  # rows of a query are stored
    assert spec.train is not None
    chosen = _kept(spec)
    first = wanted.start

    def known(place: slice) -> BlockVectors:
        device = device_of(inputs)
        return OrderedDict(
            (block, torch.tensor(context.store.read(sample_name(b), place), device=device))
            for b, block in enumerate([*spec.widths, LOSS])
        )

    def rows_of(batch: Batch) -> BlockVectors:
        return joined_rows(batch, first, chosen, known, partial(_new, context, inputs))

    for place, rows in context.each(inputs, inputs.train, spec.train, wanted, rows_of):
        first = wanted.start + place.stop
        yield place, rows


def rows_at_positions(
    chosen: Positions,
    context: Context,
    inputs: Inputs,
    compute: Callable[[Batch], BlockVectors],
) -> Iterator[BlockVectors]:
    """The rows of the training samples at some positions; only their batches are read.

    Args:
        chosen: positions, in ascending order.
        context: of the run.
        inputs: the model and the data.
        compute: computes rows of a batch.

    Yields:
        Those of some of them, in their order.
    """
    assert context.spec.train is not None
    batches = np.searchsorted(np.cumsum(context.spec.train.lengths), chosen, side="right")
    for batch in np.unique(batches):
        yield from _rows_in_batch(chosen[batches == batch], context, inputs, compute)


def _rows_in_batch(
    chosen: Positions,
    context: Context,
    inputs: Inputs,
    compute: Callable[[Batch], BlockVectors],
) -> Iterator[BlockVectors]:
    assert inputs.train is not None
    assert context.spec.train is not None
    wanted = slice(int(chosen[0]), int(chosen[-1]) + 1)
    first = wanted.start

    def rows_of(batch: Batch) -> "BlockVectors | None":
        here = chosen[(chosen >= first) & (chosen < first + batch_length(batch))] - first
        return rows_at(batch, here, compute) if len(here) else None

    for place, rows in context.each(inputs, inputs.train, context.spec.train, wanted, rows_of):
        first = wanted.start + place.stop
        if rows is not None:
            yield rows


def _new(context: Context, inputs: Inputs, given: Batch) -> BlockVectors:
    rows = context.sample_rows(inputs)
    found = rows.with_losses(rows.batch(*as_arguments(given)))
    context.gradients += batch_length(given)
    return found


def _kept(spec: RunSpec) -> Positions:
    """Positions of the training samples whose rows are kept until they are projected."""
    return _compression(spec).kept_whole(spec.plan.n)


def _compression(spec: RunSpec) -> Compression:
    assert spec.compression is not None  # rows are compressed
    return spec.compression
