"""Every method on rows of gradients that are there already, whatever they come from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.influence.by_name import METHODS

Rows = Mapping[str, Tensor]

BATCH = 64
"""Rows that a method is given at a time."""


class Linear(nn.Module):
    """f(x) = Σ_l w_l · x_l: the gradient of f(x) by w_l is x_l, so its inputs are its rows."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.widths = widths
        self.parts = nn.ModuleList(nn.Linear(width, 1, bias=False) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Sums over blocks, (B, 1)."""
        parts = zip(self.parts, x.split(self.widths, dim=1), strict=True)
        return torch.stack([layer(part) for layer, part in parts]).sum(0)


def side_by_side(rows: Rows) -> tuple[Tensor, Tensor]:
    """Rows of all blocks as inputs (n, D) of the linear model, and targets, which do not count."""
    x = torch.cat(list(rows.values()), dim=1)
    return x, torch.zeros(len(x))


def fitted(method: str, G: Rows, **settings: Any) -> Any:
    """A method of the package, fitted on training rows G, with automatic damping."""
    x, y = side_by_side(G)
    model = Linear([rows.shape[1] for rows in G.values()]).to(x.dtype)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    return METHODS[method](model, lambda output, _: output.sum(), **settings).fit(batches)


def mean_row(V: Rows) -> dict[str, Tensor]:
    """The mean over queries, whose influence is the mean influence, as rows (1, d_l)."""
    return {block: rows.mean(0, keepdim=True) for block, rows in V.items()}


def published_lissa(G: Rows, v: Rows, damping: Mapping[str, float], steps: int = 10) -> Tensor:
    """Σ_l rᵀ g with r ← v + (I − (H + λ I)) r, ten times from r = v and unscaled, in float64."""
    total: Any = 0
    for block, λ in damping.items():
        rows, start = G[block].double(), v[block].double()
        r = start
        for _ in range(steps):
            r = start + r - (r @ rows.T @ rows / len(rows) + λ * r)
        total = total + r @ rows.T
    return total
