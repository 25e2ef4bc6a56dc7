"""A model of wide layers, and what the formulas say of its rows behind side bases."""

from functools import cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import dense
from pydvl_datainf import ExactInfluence

N, M, BATCH, TOKENS, RANK, SAMPLE, SHARE = 29, 5, 3, 2, 6, 9, 0.5
LARGE = 4.0
LAYERS = {"tokens.layer": True, "tokens.plain": False, "image": True, "head": True}
"""Blocks that get side bases, and whether they have a bias."""


class Tokens(nn.Module):
    """Wide layers on each of a few tokens; one is called twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.plain = nn.Linear(9, 12), nn.Linear(12, 10, bias=False)

    def forward(self, x):
        y = torch.tanh(self.plain(torch.tanh(self.layer(x))))
        return y + torch.tanh(self.plain(F.pad(y, (2, 0))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.image = Tokens(), nn.Conv2d(2, 8, 2, stride=2)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        tokens = self.tokens(x[..., :9]).sum(1)
        image = self.image(x.reshape(len(x), 2, 3, 6)).tanh().flatten(2).mean(2)
        return self.head(torch.cat([tokens, image], 1))


class Bare(Model):
    """A weight is also used outside its layer, which no token tells."""

    def forward(self, x):
        return super().forward(x) + 0.1 * self.tokens.layer.weight.sin().sum() * x[:, 0, :3]


class Rooted(Model):
    """The gradient of one sample is not finite, and all losses are."""

    def forward(self, x):
        chosen = (x[:, 0, 0] == LARGE)[:, None]
        y = super().forward(x)
        return y + torch.where(chosen, 0 * y, 1.0).sqrt()


class Late(Model):
    """The same with one sample of a late batch, from which no basis is learned."""

    def forward(self, x):
        y = super().forward(x)
        chosen = (x[:, 0, 0] == LARGE)[:, None]
        return (
            torch.where(chosen, y * self.tokens.plain.weight.square().sum(), y)
            if chosen.any()
            else y
        )


def plain_rows(model, x, y):
    """For each block one gradient a sample, by plain autograd."""
    names = list(dict(model.named_parameters()))
    rows = {}
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        own = {}
        for name, g in zip(names, grads, strict=True):
            own.setdefault(name.rpartition(".")[0], []).append(g.flatten())
        for block, parts in own.items():
            rows.setdefault(block, []).append(torch.cat(parts))
    return {block: torch.stack(parts) for block, parts in rows.items()}


@cache
def problem(kind=Model, n=N):
    torch.manual_seed(3)
    model = kind().double()
    x, y = torch.randn(n + M, TOKENS, 18, dtype=torch.float64), torch.randint(0, 3, (n + M,))
    x[np.setdiff1d(np.arange(n), learned_from(n))[-1:], 0, 0] = LARGE
    rows = plain_rows(model, x, y)
    train, test = ({b: g[part] for b, g in rows.items()} for part in (slice(n), slice(n, None)))
    return model, (x[:n], y[:n]), (x[n:], y[n:]), train, test


def learned_from(n):
    return np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])


def batches(x, y):
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def behind(Q_o, Q_i, has_bias):
    """What makes flat rows small, (a b, d)."""
    o, i = len(Q_o), len(Q_i)
    places = np.arange(o * i).reshape(o, i)
    order = np.concatenate([places[:, : i - 1].ravel(), places[:, i - 1]])
    return np.kron(Q_o, Q_i)[order if has_bias else slice(None)].T


def side_spaces(model, rows, shares=SHARE):
    """For each block the orthonormal rows of what its side bases keep, or of all."""
    chosen, found = learned_from(len(rows["head"])), {}
    for block, g in rows.items():
        S = g[chosen].numpy()
        found[block] = torch.eye(S.shape[1], dtype=g.dtype)
        if block in LAYERS:
            o = len(model.get_submodule(block).weight)
            matrices = S.reshape(len(S), o, -1)
            if LAYERS[block]:
                weight, bias = S[:, :-o].reshape(len(S), o, -1), S[:, -o:, None]
                matrices = np.concatenate([weight, bias], 2)
            a, b = (int(np.ceil(shares * k)) for k in matrices.shape[1:])
            Q_o = np.linalg.svd(np.concatenate([*matrices], 1))[0][:, :a]
            Q_i = np.linalg.svd(np.concatenate([*matrices], 0))[2][:b].T
            found[block] = torch.from_numpy(behind(Q_o, Q_i, LAYERS[block]))
    return found


def directions(model, rows, shares=SHARE):
    """For each block the orthonormal rows of the composed basis."""
    chosen, found = learned_from(len(rows["head"])), {}
    for block, sides in side_spaces(model, rows, shares).items():
        small = (rows[block][chosen] @ sides.mT).numpy()
        U = np.linalg.svd(small, full_matrices=False)[2][:RANK]
        found[block] = torch.from_numpy(U) @ sides
    return found


def influences(kind, rows, tests, bases):
    total = 0
    for block, B in bases.items():
        g, λ = rows[block], dense.automatic_damping(rows[block])
        P = B.T @ B
        eye, parts = torch.eye(g.shape[1], dtype=g.dtype), g @ P
        if kind is ExactInfluence:
            M = dense.exact_matrix(parts, λ)
        else:
            weights = 1 / (λ + g.square().sum(1))  # of whole rows
            M = (eye - torch.einsum("i,ia,ib->ab", weights, parts, parts) / len(g)) / λ
        total = total + tests[block] @ P @ M @ P @ g.T
    return total
