"""Scores where rows are not kept: tile by tile for all blocks, in passes over the data."""

from collections import OrderedDict

import torch
from torch import Tensor

from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.inverse.method import Solver, solve
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.runner.tasks.context import Context, device_of, split
from pydvl_datainf.runner.tasks.matrices import read_matrix, read_vectors, write_matrix
from pydvl_datainf.runner.tasks.rows import tile_rows
from pydvl_datainf.runner.tasks.scores import write_tiles
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import product, total

CORRECTIONS = f"{WORK}/corrections"
FACTORS = f"{WORK}/factors"


def corrections_name(group: int) -> str:
    """The array of what the rows of each span add to the inverse, for a group of queries."""
    return f"{CORRECTIONS}/{group}"


def write_correction(item: tuple[int, int], context: Context, inputs: Inputs) -> None:
    """What the solvers of all queries of a group add up over a span of training tiles."""
    q, span = item
    vectors = _held(("vectors", q), context, inputs)
    summed = torch.zeros_like(vectors)
    solvers = _solvers(vectors, summed, context)
    tiles = context.spec.plan.spans[span]
    for tile in range(tiles.start, tiles.stop):
        for _, rows in tile_rows(context, inputs, tile, context.spec.inverse_rows):
            for block, solver in solvers.items():
                solver.add(rows[block])
    write_matrix(context, corrections_name(q), summed, slice(0, len(summed)), span)


def write_factors(item: tuple[int, int], context: Context, inputs: Inputs) -> None:
    """The inverse times the vectors of a tile of queries; sums over spans add in their order."""
    context.held = None
    q, i = item
    plan, spec = context.spec.plan, context.spec
    queries, first = plan.test[i], plan.group(q).start
    flat = read_vectors(context, inputs, 0, queries)
    local = slice(queries.start - first, queries.stop - first)
    summed = (
        read_matrix(context, inputs, corrections_name(q), local) if spec.method.passes else None
    )
    for block, solver in _solvers(flat, summed, context).items():
        if solver.wants_rows:
            solver.end_pass()
        split(flat, spec.widths)[block][:] = solver.result()
    check_finite(split(flat, spec.widths))
    write_matrix(context, FACTORS, flat, queries)


def write_scores(item: tuple[int, int, tuple[int, ...]], context: Context, inputs: Inputs) -> None:
    """The scores of one training tile for some neighbouring tiles of the queries of a group."""
    q, j, tiles = item
    plan = context.spec.plan
    first, wanted = plan.group(q).start, plan.train[j]
    places = slice(plan.test[tiles[0]].start - first, plan.test[tiles[-1]].stop - first)
    # Of the whole group, however few tiles are missing: with other queries beside them products of
    # the same numbers are rounded otherwise.
    flat = _held(("factors", q), context, inputs)
    factors = split(flat, context.spec.widths)
    blocks = len(factors) if context.spec.by_block else 1
    scores = flat.new_zeros(len(flat), blocks, wanted.stop - wanted.start)
    for place, rows in tile_rows(context, inputs, j):
        for b, (block, F) in enumerate(factors.items()):
            scores[:, b % blocks, place] += product(F, rows[block])
    scores = scores[places]
    write_tiles(context, tiles, j, (scores if context.spec.by_block else scores[:, 0]).cpu())


def write_self_influence(group: int, context: Context, inputs: Inputs) -> None:
    """The self-influences of the training samples of some tiles, in one pass over all rows."""
    spec, plan = context.spec, context.spec.plan
    tiles = plan.self_groups[group]
    wanted = slice(plan.train[tiles.start].start, plan.train[tiles.stop - 1].stop)
    size = wanted.stop - wanted.start, plan.n_parameters
    dtype = getattr(torch, spec.precision)
    flat, done = torch.empty(size, dtype=dtype, device=device_of(inputs)), 0
    for j in range(tiles.start, tiles.stop):
        for place, rows in tile_rows(context, inputs, j):
            length = place.stop - place.start
            flat[done : done + length] = torch.cat(list(rows.values()), 1)
            done += length
    of = spec.inverse_rows
    forms = solve(
        spec.method.forms,
        split(flat, spec.widths),
        lambda: (
            rows for j in range(len(plan.train)) for _, rows in tile_rows(context, inputs, j, of)
        ),
        spec.n_inverse,
        context.damping,
    )
    context.store.write("self_influence", wanted, total(forms).cpu().numpy().astype(spec.dtype))


def _solvers(flat: Tensor, summed: Tensor | None, context: Context) -> "OrderedDict[str, Solver]":
    """A solver for each block, which adds up into columns of a matrix, where it adds up."""
    spec, vectors = context.spec, split(flat, context.spec.widths)
    solvers: OrderedDict[str, Solver] = OrderedDict(
        (block, spec.method.times(V, context.damping[block], spec.n_inverse))
        for block, V in vectors.items()
    )
    if summed is not None:
        for block, sums in split(summed, spec.widths).items():
            solvers[block].sums = sums
    return solvers


def _held(what: tuple[str, int], context: Context, inputs: Inputs) -> Tensor:
    """Vectors or factors of a group of queries, read once for neighbouring tasks."""
    if context.held is None or context.held[0] != what:
        context.held = None
        name, q = what
        queries = context.spec.plan.group(q)
        flat = (
            read_vectors(context, inputs, 0, queries)
            if name == "vectors"
            else read_matrix(context, inputs, FACTORS, queries)
        )
        context.held = what, flat
    flat = context.held[1]
    assert isinstance(flat, Tensor)
    return flat
