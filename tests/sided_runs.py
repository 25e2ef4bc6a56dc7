"""Runs behind side bases, of a model with wide layers."""

import torch
import zarr
from torch.nn import functional as F

import method_runs
import small_runs
from pydvl_datainf import ExactInfluence, run_influences
from pydvl_datainf.results.reader import InfluenceRun
from wide_layers import LAYERS, RANK, SAMPLE, SHARE, N, batches, behind, problem

ASKED = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "sides": SHARE}


def built(kind=ExactInfluence, n=N, **settings):
    return kind(problem(n=n)[0], F.cross_entropy, **settings)


def run(store, kind=ExactInfluence, n=N, **settings):
    _, train, test, *_ = problem(n=n)
    usual = {"tile": (2, 8), "memory": "1MiB", "progress": False}
    data = built(kind, n), [test], batches(*train)
    return run_influences(*data, store, **ASKED | usual | settings)


SMALL = {"rows": "compressed", "rank": 4, "basis_sample": 9, "sides": 0.5}


def run_small(store, **settings):
    """Of two layers, of which 6 numbers each are behind side bases."""
    usual = {"tile": (2, 12), "memory": "1MiB"}
    return small_runs.run(store, built_small(), **SMALL | usual | settings)


def built_small(**settings):
    return ExactInfluence(small_runs.network(), F.cross_entropy, **settings)


def fitted_small(train, **settings):
    """Influences in memory, of the same queries."""
    fitted = built_small(**SMALL | settings).fit(train)
    return fitted.training_influences(*small_runs.samples(small_runs.M, 2))


def widths(n=N):
    return {block: g.shape[1] for block, g in problem(n=n)[3].items()}


def stored_sides(store):
    """For each block orthonormal rows of what its side bases keep, as stored, or of all."""
    group, kept, found = zarr.open_group(store, mode="r"), InfluenceRun(store).side_widths, {}
    for k, (block, d) in enumerate(widths().items()):
        found[block] = torch.eye(d, dtype=torch.float64)
        if block in kept:
            (a, b), o = kept[block], len(problem()[0].get_submodule(block).weight)
            flat = group[f"sides/{k}"][...]
            Q_o, Q_i = flat[: o * a].reshape(o, a), flat[o * a :].reshape(-1, b)
            found[block] = torch.from_numpy(behind(Q_o, Q_i, LAYERS[block]))
    return found


def stored_bases(store):
    """For each block the rows of the composed basis, as stored."""
    group, sides = zarr.open_group(store, mode="r"), stored_sides(store)
    return {
        block: torch.from_numpy(group[f"bases/{k}"][...]) @ Q
        for k, (block, Q) in enumerate(sides.items())
    }


def stored_coordinates(store):
    return method_runs.stored_rows(store, InfluenceRun(store).ranks)
