"""From training rows and test gradients to factors: the inverse times the test gradients."""

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.inverse.sherman_morrison import add_correction, transformed
from pydvl_datainf.inverse.woodbury import named, solved
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.runner.job import VECTORS, Job
from pydvl_datainf.runner.worker_inputs import Inputs

CORRECTIONS = f"{WORK}/corrections"
SOLUTIONS = f"{WORK}/solutions"


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
    dtype = job.dtype if codes is None else job.precision
    flat = torch.zeros(length, plan.n_parameters, dtype=getattr(torch, dtype))
    for place, rows in job.computed(inputs, inputs.test, job.test, wanted):
        vectors = torch.cat(list(rows.values()), 1).cpu()
        if codes is None:
            flat[place] = vectors
        else:
            of_place = codes[wanted.start + place.start : wanted.start + place.stop]
            flat.index_add_(0, torch.tensor(of_place), vectors.to(flat.dtype))
    if codes is None:
        job.write_matrix(VECTORS, flat, wanted, 0)
    else:
        job.write_matrix(VECTORS, flat, slice(0, plan.m), part)
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
                add_correction(parts[block], G, vectors[block], job.damping[block])
    job.write_matrix(f"{CORRECTIONS}/{q}", summed, slice(0, len(flat)), span)
    return job.gradients - before


def write_factors(item: tuple[int, int], job: Job, inputs: Inputs) -> int:
    """The inverse times the vectors of a tile of queries."""
    job.release()
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
    job.write_matrix("factors", flat, queries)
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
    factors = named(block, solved, job.block_rows(inputs, block), V, job.damping[block])
    job.store.write(f"{SOLUTIONS}/{q}/{b}", ..., factors.cpu().numpy())
    return job.gradients - before
