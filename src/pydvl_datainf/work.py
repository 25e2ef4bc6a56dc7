"""The pieces of work of a run: each reads what it needs, computes, and writes whole chunks.

Results pass between pieces of work through the store alone. So it does not matter which process
does which of them, what is done stays done, and no message is larger than a few numbers. Each
returns how many gradients it computed.
"""

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.inputs import Description, Inputs
from pydvl_datainf.inverse.comparison import compared_with_exact
from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.inverse.sherman_morrison import correction, transformed
from pydvl_datainf.inverse.woodbury import quadratic_form, solved
from pydvl_datainf.job import VECTORS, Job
from pydvl_datainf.plan import sampled_queries
from pydvl_datainf.samples import surveyed
from pydvl_datainf.store import WORK, Array
from pydvl_datainf.vectors import BlockVectors, concatenated, length, products, total

CORRECTIONS = f"{WORK}/corrections"
SOLUTIONS = f"{WORK}/solutions"
SELF_PARTS = f"{WORK}/self_parts"
CANDIDATES = f"{WORK}/candidates"
CANDIDATE_SCORES = f"{WORK}/candidate_scores"
SUMS = f"{WORK}/sums"
APPROXIMATION = "approximation"
ENDS = ("helpful", "harmful")


# Before there is a plan


def describe(_: None, inputs: Inputs) -> Description:
    """What the client must know of the model."""
    return inputs.describe()


def survey(item: tuple[str, int, int], inputs: Inputs) -> tuple[int, list[tuple[int, str]]]:
    """The first of some batches of one side, and the lengths and checksums of them all."""
    side, start, stop = item
    return start, surveyed(getattr(inputs, side), start, stop)


# From rows to factors


def write_rows(tile: int, job: Job, inputs: Inputs) -> int:
    """The squared norms of a training tile, and its rows where they are stored."""
    before = job.gradients
    for _ in job.new_rows(inputs, tile, norms_too=True):
        pass
    return job.gradients - before


def write_vectors(part: int, job: Job, inputs: Inputs) -> int:
    """The gradients of a tile of test samples, or the sums over the groups in a part of them."""
    before, plan = job.gradients, job.plan
    codes = job.codes
    wanted = (plan.test if codes is None else job.parts)[part]
    length = wanted.stop - wanted.start if codes is None else plan.m
    flat = torch.zeros(length, plan.n_parameters, dtype=getattr(torch, job.dtype))
    for place, rows in job.computed(inputs, inputs.test, job.test, wanted):
        vectors = torch.cat(list(rows.values()), 1).cpu()
        if codes is None:
            flat[place] = vectors
        else:
            of_place = codes[wanted.start + place.start : wanted.start + place.stop]
            flat.index_add_(0, torch.tensor(of_place), vectors)
    job.store.write(VECTORS, (0, wanted) if codes is None else (part,), flat.numpy())
    return job.gradients - before


def write_correction(item: tuple[int, int], job: Job, inputs: Inputs) -> int:
    """Σ over a span of training samples of g w (g·v), for all queries of a group."""
    q, span = item
    before = job.gradients
    flat = job.held(VECTORS, q, inputs)
    summed = torch.zeros_like(flat)
    vectors, parts = job.blocks(flat), job.blocks(summed)
    tiles = job.plan.spans[span]
    for tile in range(tiles.start, tiles.stop):
        for _, rows in job.rows(inputs, tile):
            for block, G in rows.items():
                parts[block] += correction(G, vectors[block], job.damping[block])
    job.store.write(f"{CORRECTIONS}/{q}", span, summed.cpu().numpy())
    return job.gradients - before


def write_factors(item: tuple[int, int], job: Job, inputs: Inputs) -> int:
    """The inverse times the vectors of a tile of queries."""
    q, i = item
    queries, first = job.plan.test[i], job.plan.group(q).start
    local = slice(queries.start - first, queries.stop - first)
    if job.inverse.rows == "together":
        names = (f"{SOLUTIONS}/{q}/{b}" for b in range(len(job.widths)))
        flat = torch.from_numpy(np.concatenate([job.store.read(name, local) for name in names], 1))
    else:
        flat = job.vectors(inputs, queries)
        _transform(flat, q, local, job, inputs)
    check_finite(job.blocks(flat))
    job.store.write("factors", queries, flat.cpu().numpy())
    return 0


def _transform(flat: Tensor, q: int, local: slice, job: Job, inputs: Inputs) -> None:
    """Puts in place of vectors what the inverse makes of them; corrections add in their order."""
    vectors, n = job.blocks(flat), job.plan.n
    if job.inverse.rows == "unused":
        for block, factors in job.inverse.times(vectors, (), n, job.damping).items():
            vectors[block][:] = factors
        return
    summed = job.blocks(job.read_matrix(f"{CORRECTIONS}/{q}", local, inputs))
    for block, V in vectors.items():
        V[:] = transformed(V, summed[block], n, job.damping[block])


def write_solution(item: tuple[int, int], job: Job, inputs: Inputs) -> int:
    """The exact inverse of one block times the vectors of a group of queries."""
    q, b = item
    before, block = job.gradients, list(job.widths)[b]
    V = job.blocks(job.held(VECTORS, q, inputs))[block]
    factors = solved(job.block_rows(inputs, block), V, job.damping[block])
    job.store.write(f"{SOLUTIONS}/{q}/{b}", ..., factors.cpu().numpy())
    return job.gradients - before


# From factors to scores


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
            parts = products(blocks[i], rows)
            both = torch.stack(list(parts.values()), 1) if job.by_block else total(parts)
            scores[i][..., place] = both.cpu()
    for i in tiles:
        values = scores[i].numpy()
        _check_scores(values, plan.test[i], wanted)
        if job.top_k is None:
            job.store.write("scores", (plan.test[i], ..., wanted), values)
        else:
            _write_candidates(job, i, j, values, job.top_k)
    return job.gradients - before


def _write_candidates(job: Job, i: int, j: int, scores: Array, top_k: int) -> None:
    """The best and worst of a tile, with their positions; and the sums over its queries."""
    queries, wanted = job.plan.test[i], job.plan.train[j]
    k = min(top_k, scores.shape[1])
    positions = np.full((len(scores), 1, len(ENDS), top_k), -1)
    values = np.zeros(positions.shape, dtype=scores.dtype)
    for end, signed in enumerate((-scores, scores)):
        chosen = np.argsort(signed, axis=1, kind="stable")[:, :k]
        positions[:, 0, end, :k] = wanted.start + chosen
        values[:, 0, end, :k] = np.take_along_axis(scores, chosen, axis=1)
    job.store.write(CANDIDATES, (queries, slice(j, j + 1)), positions)
    job.store.write(CANDIDATE_SCORES, (queries, slice(j, j + 1)), values)
    job.store.write(SUMS, (i, wanted), scores.sum(0, dtype=np.float64))  # last: marks all as done


def write_top(i: int, job: Job, inputs: Inputs) -> int:
    """The best and worst training samples of a tile of queries, merged from those of all tiles."""
    queries = job.plan.test[i]
    positions = job.store.read(CANDIDATES, queries)  # (queries, tiles, ends, k)
    scores = job.store.read(CANDIDATE_SCORES, queries)
    top_k = job.store.array("top").shape[-1]
    shape = (len(positions), len(ENDS), top_k)
    top, values = np.empty(shape, dtype=positions.dtype), np.empty(shape, dtype=scores.dtype)
    for end, sign in enumerate((-1, 1)):
        for t in range(len(positions)):
            found, score = positions[t, :, end].ravel(), scores[t, :, end].ravel()
            found, score = found[found >= 0], score[found >= 0]
            order = np.lexsort((found, sign * score))[:top_k]
            top[t, end], values[t, end] = found[order], score[order]
    job.store.write("top_scores", queries, values)
    job.store.write("top", queries, top)
    return 0


def write_mean(j: int, job: Job, inputs: Inputs) -> int:
    """The mean over the queries of the influence of the samples of a training tile."""
    wanted = job.plan.train[j]
    if job.top_k is None:
        scores = job.store.read("scores", (..., wanted))
        sums = scores.sum(tuple(range(scores.ndim - 1)), dtype=np.float64)
    else:
        sums = job.store.read(SUMS, (slice(None), wanted)).sum(0)
    job.store.write("mean_influence", wanted, sums / job.plan.m)
    return 0


def write_self_influence(group: int, job: Job, inputs: Inputs) -> int:
    """The self-influences of the training samples of some tiles."""
    before = job.gradients
    job.store.write("self_influence", self_group(job, group), self_influences(group, job, inputs))
    return job.gradients - before


def self_group(job: Job, group: int) -> slice:
    """The training samples whose self-influences are computed together."""
    tiles = job.plan.self_groups[group]
    return slice(job.plan.train[tiles.start].start, job.plan.train[tiles.stop - 1].stop)


def self_influences(group: int, job: Job, inputs: Inputs | None) -> Array:
    """Σ_l g_kᵀ (inverse_l) g_k for the training samples k of a group."""
    plan = job.plan
    tiles = plan.self_groups[group]
    own = [rows for j in range(tiles.start, tiles.stop) for _, rows in job.rows(inputs, j)]
    forms = job.inverse.forms(concatenated(own), _all_rows(job, inputs), plan.n, job.damping)
    return total(forms).cpu().numpy()


def write_self_part(b: int, job: Job, inputs: Inputs) -> int:
    """The part of one block in all self-influences, under the exact inverse."""
    before = job.gradients
    job.store.write(SELF_PARTS, b, self_part(b, job, inputs))
    return job.gradients - before


def self_part(b: int, job: Job, inputs: Inputs | None) -> Array:
    """g_kᵀ (exact inverse) g_k in one block for all training samples k."""
    block = list(job.widths)[b]
    G = job.block_rows(inputs, block)
    return quadratic_form(G, G, job.damping[block]).cpu().numpy()


def all_self_influences(job: Job) -> Array:
    """Σ_l g_kᵀ (inverse_l) g_k for all training samples k, from rows in a store."""
    if job.inverse.rows == "together":
        parts = [self_part(b, job, None) for b in range(len(job.widths))]
        return np.asarray(np.sum(parts, axis=0))
    groups = range(len(job.plan.self_groups))
    return np.concatenate([self_influences(group, job, None) for group in groups])


def write_self_sum(_: None, job: Job, inputs: Inputs) -> int:
    """Self-influences as sums of the parts of the blocks."""
    job.store.write("self_influence", ..., job.store.read(SELF_PARTS).sum(0))
    return 0


# How far the inverse is from the exact one


def write_approximation_error(samples: int, job: Job, inputs: Inputs) -> int:
    """The error of the inverse on some samples, block by block, and that of their influences."""
    before = job.gradients
    rows = concatenated([_first(job.rows(inputs, j), k) for j, k in job.plan.sampled(samples)])
    places = sampled_queries(job.test.n)
    vectors = concatenated(
        [v for place in places for _, v in job.computed(inputs, inputs.test, job.test, place)]
    )
    found = compared_with_exact(job.inverse, vectors, rows, job.damping)
    told = {
        "n": length(rows),
        "m": length(vectors),
        "score_error": found.score_error,
        "rank_correlation": found.rank_correlation,
        "asked": samples,
    }
    job.store.array(APPROXIMATION).attrs.update(told)
    values = [list(found.errors.values()), list(found.cosines.values())]
    job.store.write(APPROXIMATION, ..., np.array(values))  # last: marks it as done
    return job.gradients - before


def _first(pieces: Iterator[tuple[slice, BlockVectors]], count: int) -> BlockVectors:
    """The first rows of a tile."""
    found = []
    for place, rows in pieces:
        wanted = max(0, min(place.stop, count) - place.start)
        found.append(OrderedDict((block, G[:wanted]) for block, G in rows.items()))
        if place.stop >= count:
            break
    return concatenated(found)


def _all_rows(job: Job, inputs: Inputs | None) -> Iterator[BlockVectors]:
    for j in range(len(job.plan.train)):
        for _, rows in job.rows(inputs, j):
            yield rows


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
