"""Runs by each method, the formulas for their rows, and what stops or watches their tasks."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import zarr
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dense
from pydvl_datainf import DataInfInfluence, ExactInfluence, HessianFreeInfluence
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks
from small_runs import network


def datainf(regularization="auto", model=None):
    return DataInfInfluence(model or network(), F.cross_entropy, regularization)


def exact(regularization="auto", model=None):
    return ExactInfluence(model or network(), F.cross_entropy, regularization)


def plain(model=None):
    return HessianFreeInfluence(model or network(), F.cross_entropy)


def scaled(regularization="auto", model=None):
    return HessianFreeInfluence(model or network(), F.cross_entropy, regularization, scaled=True)


MATRICES = {
    datainf: dense.datainf_matrix,
    exact: dense.exact_matrix,
    plain: lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype),
    scaled: dense.scaled_identity,
}


def loader(data, size):
    return DataLoader(TensorDataset(*data), size)


def dense_rows(model, blocks, data):
    """Gradients (B, d) of each block, by the oracle."""
    return {b: dense.gradients(model, F.cross_entropy, data, names) for b, names in blocks.items()}


def stored_rows(store, widths):
    """What is in the store, put together in float64, by block."""
    group = zarr.open_group(store, mode="r")
    pieces = [group[f"rows/{p}"][...] for p in range(len(InfluenceRun(store).plan.pieces))]
    halves = torch.from_numpy(np.hstack(pieces)).double().split([*widths.values()], 1)
    scales = torch.from_numpy(group["row_scales"][...]).double().unbind(1)
    return {b: h * s[:, None] for b, h, s in zip(widths, halves, scales, strict=True)}


def influences_by_block(build, V, G, damping):
    """Scores (m, blocks, n) and self-influences (n,), by the oracle."""
    inverse = {b: MATRICES[build](g, damping[b]) for b, g in G.items()}
    scores = torch.stack([V[b] @ inverse[b] @ g.T for b, g in G.items()], 1)
    return scores.numpy(), sum((g @ inverse[b] * g).sum(1) for b, g in G.items()).numpy()


def results(store):
    """The content of all chunks."""
    files = (p for p in store.rglob("*") if p.is_file() and "/c/" in p.as_posix())
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def recorded(monkeypatch, where, name, seen):
    """Has every call of a function seen first."""
    function = getattr(where, name)

    def record(*arguments):
        seen(*arguments)
        return function(*arguments)

    monkeypatch.setattr(where, name, record)


@contextmanager
def stopped(monkeypatch, name, call):
    """Where Ctrl-C comes in a certain call of a task, and what else is patched until then."""
    seen = []

    def stop(*arguments):
        seen.append(arguments)
        if len(seen) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        recorded(patch, tasks, name, stop)
        with pytest.raises(KeyboardInterrupt):
            yield patch
