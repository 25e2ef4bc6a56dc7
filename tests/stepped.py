"""A small classifier after some steps of an optimizer, and what Adam's formula says of it."""

import torch
from torch import nn
from torch.nn import functional as F

import dense
from small_runs import samples

BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
N, M = 11, 4


TRAIN, TEST = samples(N, 1), samples(M, 2)


def network(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double().eval()


def stepped(optimizer=torch.optim.AdamW, steps=3, model=None, parameters=None, **settings):
    """The model and its optimizer; weights and biases in groups of their own."""
    model = model or network()
    named = dict(model.named_parameters())
    chosen = parameters or list(named)
    groups = [
        {"params": [named[n] for n in chosen if n.endswith(kind)]} for kind in ("weight", "bias")
    ]
    made = optimizer([g for g in groups if g["params"]], lr=0.01, **settings)
    for step in range(steps):
        x, y = samples(8, 20 + step)
        made.zero_grad()
        F.cross_entropy(model(x), y).backward()
        made.step()
    model.zero_grad()
    return model, made


def scales(v, steps, betas=(0.9, 0.999), eps=1e-8):
    """(√v̂ + ε)^(-1/2) of each number, one by one."""
    flat = [(abs(x) / (1 - betas[1] ** steps)) ** 0.5 + eps for x in v.flatten().tolist()]
    return torch.tensor([x**-0.5 for x in flat], dtype=torch.float64)


def scales_by_block(model, optimizer, steps=3, **settings):
    """For each block of `BLOCKS`, (d,)."""
    named = dict(model.named_parameters())
    return {
        block: torch.cat(
            [scales(optimizer.state[named[n]]["exp_avg_sq"], steps, **settings) for n in names]
        )
        for block, names in BLOCKS.items()
    }


def scaled_rows(model, data, by_block, loss=F.cross_entropy):
    """For each block the gradients of samples, one backward pass each, times the scales."""
    return {
        block: dense.gradients(model, loss, data, names) * by_block[block]
        for block, names in BLOCKS.items()
    }
