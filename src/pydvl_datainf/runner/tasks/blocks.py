"""Everything that is made of the rows of a piece of blocks, which are read once for all of it."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.inverse.method import Make, Method, solve
from pydvl_datainf.results.arrays import WORK, Array
from pydvl_datainf.runner.tasks.context import Context, split
from pydvl_datainf.runner.tasks.matrices import read_vectors
from pydvl_datainf.runner.tasks.moments import ready_method
from pydvl_datainf.runner.tasks.rows import Chunks, PieceRows
from pydvl_datainf.runner.tasks.scores import parts_name, write_tiles
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, product

SELF_PARTS = f"{WORK}/self_influence"
RESIDUALS = f"{WORK}/residuals"
"""The largest residual of what was iterated for, of each group of queries, and, last, of the
training samples, in each piece."""


class PieceWork(NamedTuple):
    """What to make of a piece of blocks.

    Attributes:
        piece: which.
        group: of queries whose scores are wanted; None = none.
        self_influence: whether those of the training samples are.
    """

    piece: int
    group: int | None = None
    self_influence: bool = False


def write_piece(wanted: PieceWork, context: Context, inputs: Inputs | None) -> None:
    """Scores of a group of queries and self-influences, as far as a piece of blocks makes them."""
    spec, rows = context.spec, PieceRows(context, inputs, wanted.piece)
    others = PieceRows(context, inputs, wanted.piece, spec.inverse_rows) if spec.curvature else None
    own = np.zeros(spec.plan.n)
    residuals: list[float] = []
    own_residuals: list[float] = []
    scores = vectors = None
    if wanted.group is not None:
        assert inputs is not None  # whose gradients the queries are
        flat = read_vectors(context, inputs, rows.p, spec.plan.group(wanted.group))
        vectors = split(flat, spec.piece(rows.p))
        scores = flat.new_zeros(len(flat), spec.plan.n)
    for block in spec.piece(rows.p):
        chunks = rows.of_block(block)
        of_inverse = chunks if others is None else others.of_block(block)
        method = ready_method(block, of_inverse, context, inputs)
        fed = rows.weighed(block, method, of_inverse)
        if scores is not None and vectors is not None:
            F = _solved(method.times, block, vectors[block], fed, context, residuals)
            check_finite({block: F})
            _add_scores(scores, F, chunks)
            if spec.by_block:
                _tell_residual(residuals, wanted.group, wanted, context)
                _write(scores, block, wanted, context)
                scores.zero_()
        if wanted.self_influence:
            own += _self_influences(block, method, chunks, fed, context, own_residuals)
    if scores is not None and not spec.by_block:
        _tell_residual(residuals, wanted.group, wanted, context)
        _write(scores, None, wanted, context)
    if wanted.self_influence:
        _tell_residual(own_residuals, len(spec.plan.groups), wanted, context)
        context.store.write(SELF_PARTS, rows.p, own)


def write_self_sum(_: None, context: Context, inputs: Inputs | None) -> None:
    """Self-influences as sums of the parts of all pieces."""
    pieces = range(len(context.spec.plan.pieces))
    parts = (context.store.read(SELF_PARTS, p) for p in pieces)  # one after the other
    context.store.write("self_influence", ..., sum(parts, np.zeros(1)).astype(context.spec.dtype))


def _add_scores(scores: Tensor, F: Tensor, chunks: Chunks) -> None:
    """Adds what the factors (m, d) of a block give to scores of all training samples, (m, n)."""
    done = 0
    for G in chunks():
        scores[:, done : done + len(G)] += product(F, G)
        done += len(G)


def _write(scores: Tensor, block: str | None, wanted: PieceWork, context: Context) -> None:
    """Scores of all training samples, of one block or added up over the piece, tile by tile."""
    spec, plan = context.spec, context.spec.plan
    q, values = wanted.group or 0, scores.cpu()
    for j, tile in enumerate(plan.train):
        if block is not None:
            b = list(spec.widths).index(block)
            write_tiles(context, plan.tiles_of(q), j, values[:, None, tile], slice(b, b + 1))
        elif spec.adds_parts:
            name, first = parts_name(wanted.piece), plan.group(q).start
            for i in plan.tiles_of(q):
                own = slice(plan.test[i].start - first, plan.test[i].stop - first)
                context.store.write(name, (plan.test[i], tile), values[own, tile].numpy())
        else:
            write_tiles(context, plan.tiles_of(q), j, values[:, tile])


def _self_influences(
    block: str,
    method: Method,
    chunks: Chunks,
    fed: Chunks,
    context: Context,
    residuals: list[float],
) -> Array:
    """gᵀ (inverse) g of each training sample in one block; as many at once as there is room for."""
    spec = context.spec
    most = max(1, spec.plan.held // (32 * (spec.widths[block] + 2 * spec.plan.chunk)))
    forms = [
        _solved(method.forms, block, own, fed, context, residuals)
        for own in regrouped(chunks(), most)
    ]
    return torch.cat(forms).double().cpu().numpy()


def _tell_residual(
    found: list[float], row: int | None, wanted: PieceWork, context: Context
) -> None:
    """Stores the largest, before the numbers that it belongs to, which mark the work as done."""
    if found:
        context.store.write(RESIDUALS, (row, wanted.piece), np.array(max(found)))


def _solved(
    make: Make, block: str, V: Tensor, fed: Chunks, context: Context, residuals: list[float]
) -> Tensor:
    """What `make` solves, and the largest residual, where there is one."""

    def passes() -> Iterator[BlockVectors]:
        return (OrderedDict({block: G}) for G in fed())

    vectors, left = OrderedDict({block: V}), dict[str, Tensor]()
    solved = solve(make, vectors, passes, context.spec.n_inverse, context.damping, left)[block]
    residuals += [float(r.max()) for r in left.values()]
    return solved


def regrouped(chunks: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """The same rows in the same order, in pieces of as many as go into `most`.

    Args:
        chunks: rows, (b, d).
        most: rows in a piece.

    Yields:
        Rows, (up to most, d).
    """
    waiting: list[Tensor] = []
    for part in (G[at : at + most] for G in chunks for at in range(0, len(G), most)):
        if sum(map(len, waiting)) + len(part) > most:
            yield torch.cat(waiting)
            waiting = []
        waiting.append(part)
    if waiting:
        yield torch.cat(waiting)
