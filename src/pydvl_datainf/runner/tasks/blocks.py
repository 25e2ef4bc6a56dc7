"""Everything that is made of the rows of a piece of blocks, which are read once for all of it."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.inverse.method import Make, solve
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.results.store import Array
from pydvl_datainf.runner.tasks.context import Context, split
from pydvl_datainf.runner.tasks.matrices import read_vectors
from pydvl_datainf.runner.tasks.rows import PieceRows
from pydvl_datainf.runner.tasks.scores import parts_name, write_tiles
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, product

SELF_PARTS = f"{WORK}/self_influence"


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
    rows = PieceRows(context, inputs, wanted.piece)
    if wanted.group is not None:
        assert inputs is not None  # whose gradients the queries are
        _write_scores(wanted.group, rows, context, inputs)
    if wanted.self_influence:
        parts = [_self_influences(block, rows, context) for block in context.spec.piece(rows.p)]
        context.store.write(SELF_PARTS, rows.p, np.sum(parts, axis=0))


def write_self_sum(_: None, context: Context, inputs: Inputs | None) -> None:
    """Self-influences as sums of the parts of all pieces."""
    pieces = range(len(context.spec.plan.pieces))
    parts = (context.store.read(SELF_PARTS, p) for p in pieces)  # one after the other
    context.store.write("self_influence", ..., sum(parts, np.zeros(1)).astype(context.spec.dtype))


def _write_scores(q: int, rows: PieceRows, context: Context, inputs: Inputs) -> None:
    spec, plan = context.spec, context.spec.plan
    factors = _factors(q, rows, context, inputs)
    for j, wanted in enumerate(plan.train):
        scores = _products(factors, rows, j, context)
        if spec.adds_parts:
            context.store.write(parts_name(rows.p), (plan.group(q), wanted), scores.numpy())
        else:
            write_tiles(context, plan.tiles_of(q), j, scores, spec.blocks(rows.p))


def _factors(q: int, rows: PieceRows, context: Context, inputs: Inputs) -> BlockVectors:
    """The inverse times the gradients of queries, block by block, each in its vectors' place."""
    spec = context.spec
    flat = read_vectors(context, inputs, rows.p, spec.plan.group(q))
    factors = split(flat, spec.piece(rows.p))
    for block, V in factors.items():
        V[:] = _solved(spec.method.times, block, V, rows, context)
    check_finite(factors)
    return factors


def _products(factors: BlockVectors, rows: PieceRows, j: int, context: Context) -> Tensor:
    """Scores of a training tile, added up over the blocks, (m, r), or by block, (m, L, r)."""
    wanted, first = context.spec.plan.train[j], next(iter(factors.values()))
    blocks = len(factors) if context.spec.by_block else 1
    scores = first.new_zeros(len(first), blocks, wanted.stop - wanted.start)
    for b, (block, F) in enumerate(factors.items()):
        for place, G in rows.of_tile(j, block):
            scores[:, b % blocks, place] += product(F, G)
    return (scores if context.spec.by_block else scores[:, 0]).cpu()


def _self_influences(block: str, rows: PieceRows, context: Context) -> Array:
    """gᵀ (inverse) g of each training sample in one block; as many at once as there is room for."""
    spec = context.spec
    most = max(1, spec.plan.held // (32 * (spec.widths[block] + 2 * spec.plan.chunk)))
    forms = [
        _solved(spec.method.forms, block, own, rows, context)
        for own in regrouped(rows.chunks(block), most)
    ]
    return torch.cat(forms).double().cpu().numpy()


def _solved(make: Make, block: str, V: Tensor, rows: PieceRows, context: Context) -> Tensor:
    def passes() -> Iterator[BlockVectors]:
        return (OrderedDict({block: G}) for G in rows.chunks(block))

    vectors = OrderedDict({block: V})
    return solve(make, vectors, passes, context.spec.plan.n, context.damping)[block]


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
