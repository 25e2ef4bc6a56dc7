"""Runs of three seeds of a small classifier to be added, and their sums by the oracle."""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import (
    DataInfInfluence,
    ExactInfluence,
    HessianFreeInfluence,
    run_influences,
    sum_runs,
)
from small_runs import samples

N, M = 11, 13  # more queries than training samples
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
WEIGHTS = [0.5, 2.0, 0.25]
METHODS = {
    "datainf": (DataInfInfluence, dense.datainf_matrix),
    "exact": (ExactInfluence, dense.exact_matrix),
    "plain": (HessianFreeInfluence, lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype)),
}


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


TEST, TRAIN = samples(M, 2), samples(N, 1)
TRAIN[0][4], TRAIN[1][4] = TRAIN[0][3], TRAIN[1][3]  # a copy


@cache
def truth(seed, method="datainf", n=N):
    """Scores (M, blocks, n) and self-influences (n,) of one model."""
    model, train = network(seed), (TRAIN[0][:n], TRAIN[1][:n])
    V, G = (
        {b: dense.gradients(model, F.cross_entropy, data, names) for b, names in BLOCKS.items()}
        for data in (TEST, train)
    )
    inverse = {b: METHODS[method][1](g, dense.automatic_damping(g)) for b, g in G.items()}
    scores = torch.stack([V[b] @ inverse[b] @ G[b].T for b in BLOCKS], 1).numpy()
    return scores, sum((G[b] @ inverse[b] * G[b]).sum(1) for b in BLOCKS).numpy()


def run(store, seed=0, method="datainf", *, n=N, batch=4, dtype=torch.float64, **settings):
    settings = {"progress": False, "rows": "memory", "tile": (5, 4), **settings}
    model = network(seed).to(dtype)
    test, train = (
        DataLoader(TensorDataset(x[:k].to(dtype), y[:k]), batch)
        for (x, y), k in ((TEST, M), (TRAIN, n))
    )
    influence = METHODS[method][0](model, F.cross_entropy)
    return run_influences(influence, test, train, store, **settings)


def add(runs, store, weights=WEIGHTS, **settings):
    return sum_runs(runs, store, weights, progress=False, **settings)


def content(store):
    """The bytes of all results."""
    files = (file for file in Path(store).rglob("*") if file.is_file() and file.name.isdigit())
    return {str(file.relative_to(store)): file.read_bytes() for file in files}
