"""From factors to scores, their best and worst, and their means."""

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.results.layout import ENDS
from pydvl_datainf.results.ranking import Best
from pydvl_datainf.results.store import Array
from pydvl_datainf.runner.job import Job
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, product

CANDIDATES = f"{WORK}/candidates"
CANDIDATE_SCORES = f"{WORK}/candidate_scores"
SUMS = f"{WORK}/sums"


def write_scores(item: tuple[int, int, tuple[int, ...]], job: Job, inputs: Inputs) -> int:
    """The scores of one training tile for some tiles of the queries of a group."""
    q, j, tiles = item
    before, plan = job.gradients, job.plan
    factors, first = job.held("factors", q, inputs), plan.group(q).start
    wanted = plan.train[j]
    places = {i: slice(plan.test[i].start - first, plan.test[i].stop - first) for i in tiles}
    blocks = {i: job.blocks(factors[place]) for i, place in places.items()}
    scores = {i: _empty(job, len(factors[place]), wanted) for i, place in places.items()}
    for place, rows in job.rows(inputs, j):
        for i in tiles:
            _put_products(scores[i][..., place], blocks[i], rows)
    for i in tiles:
        values = scores[i].numpy()
        _check_scores(values, plan.test[i], wanted)
        if job.top_k is None:
            job.store.write("scores", (plan.test[i], ..., wanted), values)
        else:
            _write_candidates(job, i, j, values, job.top_k)
    return job.gradients - before


def _put_products(scores: Tensor, factors: BlockVectors, rows: BlockVectors) -> None:
    """By block (m, L, b), or added up over blocks (m, b): never the products of all at once."""
    if scores.ndim == 3:
        for b, block in enumerate(factors):
            scores[:, b] = product(factors[block], rows[block]).cpu()
        return
    first, *others = factors
    summed = product(factors[first], rows[first])
    for block in others:
        summed += product(factors[block], rows[block])
    scores[:] = summed.cpu()


def _write_candidates(job: Job, i: int, j: int, scores: Array, top_k: int) -> None:
    """The best and worst of a tile, with their positions; and the sums over its queries."""
    queries, wanted = job.plan.test[i], job.plan.train[j]
    k = min(top_k, scores.shape[1])
    positions = np.full((len(scores), 1, len(ENDS), top_k), -1)
    values = np.zeros(positions.shape, dtype=scores.dtype)
    for end in range(len(ENDS)):
        best = Best(end, k)
        best.add_tile(scores, wanted.start)
        positions[:, 0, end, :k], values[:, 0, end, :k] = best.positions, best.scores
    job.store.write(CANDIDATES, (queries, slice(j, j + 1)), positions)
    job.store.write(CANDIDATE_SCORES, (queries, slice(j, j + 1)), values)
    job.store.write(SUMS, (i, wanted), scores.sum(0, dtype=np.float64))  # last: marks all as done


def write_top(i: int, job: Job, inputs: Inputs) -> int:
    """The best and worst training samples of a tile of queries, merged from those of all tiles."""
    queries, top_k = job.plan.test[i], job.store.array("top").shape[-1]
    merged = [Best(end, top_k) for end in range(len(ENDS))]
    for j, wanted in enumerate(job.plan.train):
        k, where = wanted.stop - wanted.start, (queries, slice(j, j + 1))
        found, scores = (job.store.read(name, where) for name in (CANDIDATES, CANDIDATE_SCORES))
        for end, best in enumerate(merged):
            best.add(found[:, 0, end, :k], scores[:, 0, end, :k])
    job.store.write("top_scores", queries, np.stack([best.scores for best in merged], 1))
    job.store.write("top", queries, np.stack([best.positions for best in merged], 1))
    return 0


def write_mean(j: int, job: Job, inputs: Inputs) -> int:
    """The mean over the queries of the influence of the samples of a training tile."""
    wanted = job.plan.train[j]
    if job.top_k is None:
        sums = np.zeros(wanted.stop - wanted.start)
        for queries in job.plan.test:
            scores = job.store.read("scores", (queries, ..., wanted))
            sums += scores.sum(tuple(range(scores.ndim - 1)), dtype=np.float64)
    else:
        sums = job.store.read(SUMS, (slice(None), wanted)).sum(0)
    job.store.write("mean_influence", wanted, sums / job.plan.m)
    return 0


def _empty(job: Job, queries: int, wanted: slice) -> Tensor:
    blocks = (len(job.widths),) if job.by_block else ()
    return torch.empty(
        queries, *blocks, wanted.stop - wanted.start, dtype=getattr(torch, job.dtype)
    )


def _check_scores(values: Array, queries: slice, wanted: slice) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        test, train = queries.start + bad[0][0], wanted.start + bad[0][-1]
        raise DampingError(
            f"The influence of training sample {train} on query {test} overflows {values.dtype}. "
            "Use a float64 model (model.double()), or scale the loss."
        )
