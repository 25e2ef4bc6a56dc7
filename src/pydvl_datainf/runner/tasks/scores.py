"""Adds the pieces' parts of scores, piece after piece; their best and worst, and their means."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.results.arrays import WORK, Array
from pydvl_datainf.results.layout import ENDS
from pydvl_datainf.results.ranking import Best
from pydvl_datainf.runner.tasks.context import Context
from pydvl_datainf.runner.worker_inputs import Inputs

PARTS = f"{WORK}/scores"
CANDIDATES = f"{WORK}/candidates"
CANDIDATE_SCORES = f"{WORK}/candidate_scores"
SUMS = f"{WORK}/sums"


def parts_name(piece: int) -> str:
    """The array of what a piece of blocks adds to all scores."""
    return f"{PARTS}/{piece}"


def write_sums(item: tuple[int, Sequence[int]], context: Context, inputs: Inputs) -> None:
    """The scores of a training tile for some tiles of queries: what all pieces add, in order."""
    j, tiles = item
    plan = context.spec.plan
    for i in tiles:
        where = plan.test[i], plan.train[j]
        first, *others = (parts_name(p) for p in range(len(plan.pieces)))
        scores = context.store.read(first, where)
        for name in others:
            scores += context.store.read(name, where)
        write_tiles(context, [i], j, torch.from_numpy(scores))


def write_tiles(
    context: Context,
    tiles: Sequence[int],
    j: int,
    scores: Tensor,
    blocks: slice = slice(None),
) -> None:
    """Writes the scores of a training tile for neighbouring tiles of queries, or their best.

    Args:
        context: of the run.
        tiles: of queries.
        j: the training tile.
        scores: of all queries in these tiles, (m, r), or by block, (m, blocks, r).
        blocks: where these are among all of them.
    """
    spec, plan, wanted = context.spec, context.spec.plan, context.spec.plan.train[j]
    first = plan.test[tiles[0]].start
    if spec.normalizes:
        norms = context.row_norms[wanted]
        scores = torch.where(norms > 0, scores / norms, 0.0)  # of zero rows they are 0
    for i in tiles:
        queries = plan.test[i]
        own = scores[queries.start - first : queries.stop - first]
        values = own.to(getattr(torch, spec.dtype)).numpy()
        _check_scores(values, queries, wanted)
        if spec.top_k is not None:
            _write_candidates(context, i, j, values, spec.top_k)
        else:
            where = (queries, blocks, wanted) if spec.by_block else (queries, wanted)
            context.store.write("scores", where, values)


def _write_candidates(context: Context, i: int, j: int, scores: Array, top_k: int) -> None:
    """The best and worst of a tile, with their positions; and the sums over its queries."""
    queries, wanted = context.spec.plan.test[i], context.spec.plan.train[j]
    k = min(top_k, scores.shape[1])
    positions = np.full((len(scores), 1, len(ENDS), top_k), -1)
    values = np.zeros(positions.shape, dtype=scores.dtype)
    for end in range(len(ENDS)):
        best = Best(end, k)
        best.add_tile(scores, wanted.start)
        positions[:, 0, end, :k], values[:, 0, end, :k] = best.positions, best.scores
    store = context.store
    store.write(CANDIDATES, (queries, slice(j, j + 1)), positions)
    store.write(CANDIDATE_SCORES, (queries, slice(j, j + 1)), values)
    store.write(SUMS, (i, wanted), scores.sum(0, dtype=np.float64))  # last: marks all as done


def write_top(i: int, context: Context, inputs: Inputs) -> None:
    """The best and worst training samples of a tile of queries, merged from those of all tiles."""
    store, plan = context.store, context.spec.plan
    queries, top_k = plan.test[i], store.array("top").shape[-1]
    merged = [Best(end, top_k) for end in range(len(ENDS))]
    for j, wanted in enumerate(plan.train):
        k, where = wanted.stop - wanted.start, (queries, slice(j, j + 1))
        found, scores = (store.read(name, where) for name in (CANDIDATES, CANDIDATE_SCORES))
        for end, best in enumerate(merged):
            best.add(found[:, 0, end, :k], scores[:, 0, end, :k])
    store.write("top_scores", queries, np.stack([best.scores for best in merged], 1))
    store.write("top", queries, np.stack([best.positions for best in merged], 1))


def write_mean(j: int, context: Context, inputs: Inputs) -> None:
    """The mean over the queries of the influence of the samples of a training tile."""
    store, plan, wanted = context.store, context.spec.plan, context.spec.plan.train[j]
    if context.spec.top_k is None:
        sums = np.zeros(wanted.stop - wanted.start)
        for queries in plan.test:
            scores = store.read("scores", (queries, ..., wanted))
            sums += scores.sum(tuple(range(scores.ndim - 1)), dtype=np.float64)
    else:
        sums = store.read(SUMS, (slice(None), wanted)).sum(0)
    store.write("mean_influence", wanted, sums / plan.m)


def _check_scores(values: Array, queries: slice, wanted: slice) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        test, train = queries.start + bad[0][0], wanted.start + bad[0][-1]
        raise DampingError(
            f"The influence of training sample {train} on query {test} overflows {values.dtype}. "
            "Use a float64 model (model.double()), or scale the loss."
        )
