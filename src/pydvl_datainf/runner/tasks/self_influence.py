"""The influence of each training sample on itself."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.inverse.woodbury import named, quadratic_form
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.results.store import Array
from pydvl_datainf.runner.job import Job, device_of
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors, total

SELF_PARTS = f"{WORK}/self_parts"


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
    own = job.blocks(_own_rows(group, job, inputs))
    forms = job.inverse.forms(own, _all_rows(job, inputs), job.plan.n, job.damping)
    return total(forms).cpu().numpy().astype(job.dtype)


def _own_rows(group: int, job: Job, inputs: Inputs | None) -> Tensor:
    """The rows of a group, flat, in one matrix from the start."""
    wanted, tiles, done = self_group(job, group), job.plan.self_groups[group], 0
    flat = torch.empty(
        wanted.stop - wanted.start,
        job.plan.n_parameters,
        dtype=getattr(torch, job.precision),
        device=device_of(inputs),
    )
    for j in range(tiles.start, tiles.stop):
        for place, rows in job.rows(inputs, j):
            length = place.stop - place.start
            for block, target in job.blocks(flat[done : done + length]).items():
                target[:] = rows[block]
            done += length
    return flat


def write_self_part(b: int, job: Job, inputs: Inputs) -> int:
    """The part of one block in all self-influences, under the exact inverse."""
    before = job.gradients
    job.store.write(SELF_PARTS, b, self_part(b, job, inputs))
    return job.gradients - before


def self_part(b: int, job: Job, inputs: Inputs | None) -> Array:
    """g_kᵀ (exact inverse) g_k in one block for all training samples k."""
    block = list(job.widths)[b]
    G = job.block_rows(inputs, block)
    return named(block, quadratic_form, G, G, job.damping[block]).cpu().numpy()


def all_self_influences(job: Job) -> Array:
    """Σ_l g_kᵀ (inverse_l) g_k for all training samples k, from rows in a store."""
    if job.inverse.rows == "together":
        return _sum((self_part(b, job, None) for b in range(len(job.widths))), job)
    groups = range(len(job.plan.self_groups))
    return np.concatenate([self_influences(group, job, None) for group in groups])


def write_self_sum(_: None, job: Job, inputs: Inputs) -> int:
    """Self-influences as sums of the parts of the blocks."""
    parts = (job.store.read(SELF_PARTS, b) for b in range(len(job.widths)))
    job.store.write("self_influence", ..., _sum(parts, job))
    return 0


def _sum(parts: Iterable[Array], job: Job) -> Array:
    """Over blocks, one after the other: all of them may take gigabytes."""
    summed = np.zeros(job.plan.n)
    for part in parts:
        summed += part
    return summed.astype(job.dtype)


def _all_rows(job: Job, inputs: Inputs | None) -> Iterator[BlockVectors]:
    for j in range(len(job.plan.train)):
        for _, rows in job.rows(inputs, j):
            yield rows
