"""Runs of a small classifier in float64, with 23 training samples and 7 queries."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import DataInfInfluence, run_influences

N, M = 23, 7
ROWS = ["memory", "zarr", "recompute"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (length,), generator=generator)


def loader(length, seed, batch_size, **settings):
    return DataLoader(TensorDataset(*samples(length, seed)), batch_size, **settings)


def train_loader(**settings):
    return loader(N, 1, 5, **settings)


def query_loader():
    return loader(M, 2, 3)


def build():
    return DataInfInfluence(network(), F.cross_entropy)


def run(store, influence=None, test=None, train=None, **settings):
    settings = {"progress": False, **settings}
    influence, test, train = influence or build(), test or query_loader(), train or train_loader()
    return run_influences(influence, test, train, store, **settings)


def oracle():
    """Scores (M, blocks, N), self-influences (N,), λ and squared norms, by the oracle."""
    model = network()
    names = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
    test, train = (
        {b: dense.gradients(model, F.cross_entropy, samples(*side), p) for b, p in names.items()}
        for side in ((M, 2), (N, 1))
    )
    damping = {block: dense.automatic_damping(rows) for block, rows in train.items()}
    inverse = {block: dense.datainf_matrix(g, damping[block]) for block, g in train.items()}
    scores = torch.stack([test[b] @ inverse[b] @ train[b].T for b in names], 1)
    selves = sum((train[b] @ inverse[b] * train[b]).sum(1) for b in names)
    norms = torch.stack([(train[b] ** 2).sum(1) for b in names], 1)
    losses = torch.stack(dense.sample_losses(model, F.cross_entropy, samples(N, 1))).detach()
    found = {"scores": scores, "selves": selves, "norms": norms, "losses": losses}
    return {name: value.numpy() for name, value in found.items()} | {"damping": damping}


def close(actual, expected, relative=1e-9):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * scale)
