"""Side bases of wide layers: moments over parts of a sample, then over the parts."""

from math import ceil

import torch

from pydvl_datainf.batches import Batch, as_arguments, batch_length
from pydvl_datainf.gradients.side_learning import SideLearner
from pydvl_datainf.inverse.sides import SideMoments
from pydvl_datainf.results.arrays import SIDE_BASES, WORK
from pydvl_datainf.results.layout import sides_name
from pydvl_datainf.results.plan import Tiling
from pydvl_datainf.runner.tasks.bases import rows_at_positions
from pydvl_datainf.runner.tasks.context import Context, device_of
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors

PARTS = 4
"""At most: each leaves all moments on the disk, and a stop loses those of one."""


def side_parts(samples: int) -> Tiling:
    """The samples that side bases are learned from, cut into parts."""
    return Tiling(samples, ceil(samples / PARTS))


def side_sums_name(block: int) -> str:
    """The array of the moments of the parts, by the number of the block."""
    return f"{WORK}/{SIDE_BASES}/{block}"


def write_side_moments(part: int, context: Context, inputs: Inputs) -> None:
    """The moments of all layers that get side bases over a part of the sample."""
    spec = context.spec
    assert spec.compression is not None  # rows are compressed
    rows = inputs.influence.sample_rows
    learner = SideLearner(rows.engine, spec.compression.kept_of_sides)

    def learn(given: Batch) -> BlockVectors:
        context.gradients += batch_length(given)
        return learner.rows(rows.batch(*as_arguments(given)))

    chosen = spec.compression.positions(spec.plan.n)
    chosen = chosen[side_parts(len(chosen))[part]]
    for _ in rows_at_positions(chosen, context, inputs, learn):
        pass
    names = list(spec.whole)
    for b in spec.side_shapes:
        moments = learner.moments[names[b]]
        flat = torch.cat([moments.outputs.flatten(), moments.inputs.flatten()])
        context.store.write(side_sums_name(b), slice(part, part + 1), flat.cpu().numpy()[None])


def write_sides(b: int, context: Context, inputs: Inputs) -> None:
    """The side bases of a block, from the sum of its moments over the parts, in their order."""
    spec, (o, a, i, k) = context.spec, context.spec.side_shapes[b]
    assert spec.compression is not None  # rows are compressed
    parts = side_parts(spec.compression.sample_size(spec.plan.n))
    first, *others = (slice(s, s + 1) for s in range(len(parts)))
    total = context.store.read(side_sums_name(b), first)[0]
    for part in others:
        total += context.store.read(side_sums_name(b), part)[0]
    flat = torch.tensor(total, device=device_of(inputs))
    *_, has_bias = spec.compression.layers[list(spec.whole)[b]]
    moments = SideMoments(has_bias, flat[: o * o].reshape(o, o), flat[o * o :].reshape(i, i))
    sides = moments.leading((a, k), getattr(torch, spec.dtype))
    found = torch.cat([sides.Q_o.flatten(), sides.Q_i.flatten()])
    context.store.write(sides_name(b), ..., found.cpu().numpy())
