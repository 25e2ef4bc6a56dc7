"""Runs whose five blocks are worked on in three pieces, and what the formulas say of them."""

from functools import cache
from itertools import pairwise

import torch
from torch import nn

import dense
import method_runs
from method_runs import datainf, exact, loader, plain, scaled
from pydvl_datainf import run_influences
from small_runs import samples

N, M = 23, 7
SIZES = (3, 4, 16, 12, 6, 4)  # of the layers between which there are five blocks
WIDTHS = [(a + 1) * b for a, b in pairwise(SIZES)]
BLOCKS = {str(i): [f"{i}.weight", f"{i}.bias"] for i in range(0, 2 * len(WIDTHS), 2)}
PIECES = ((2, 16 + 80), (1, 204), (2, 78 + 28))
TILES = 4  # of queries, and of training samples
# Bytes in which the queries take several groups.
TIGHT = {datainf: 60_000, exact: 170_000, plain: 40_000, scaled: 40_000}
MEMORY = {"one group": lambda build: "1MiB", "groups": TIGHT.__getitem__}


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(SIZES)]
    between = [part for layer in layers for part in (layer, nn.Tanh())]
    return nn.Sequential(*between[:-1]).double()


def run(store, build=datainf, **settings):
    usual = {"rows": "zarr", "tile": (2, 6), "memory": "1MiB", "progress": False}
    data = {"test": loader(samples(M, 2), 3), "train": loader(samples(N, 1), 5)}
    return run_influences(build(model=network()), store=store, **data | usual | settings)


@cache
def rows_of(length, seed):
    return method_runs.dense_rows(network(), BLOCKS, samples(length, seed))


def stored_rows(store):
    return method_runs.stored_rows(store, dict(zip(BLOCKS, WIDTHS, strict=True)))


def truth(store, build=datainf):
    """Scores (M, blocks, N) and self-influences (N,) of the rows that are stored, by the oracle."""
    λ = {b: dense.automatic_damping(g) for b, g in rows_of(N, 1).items()}
    return method_runs.influences_by_block(build, rows_of(M, 2), stored_rows(store), λ)
