"""Influences from compressed rows whose ranks are chosen, in memory."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import dense
from fitted import Problem, close
from pydvl_datainf import DataInfInfluence, ExactInfluence, SourceError


def fitted(p, kind=ExactInfluence, data=None, **settings):
    asked = {"rows": "compressed", "rank": "auto", "basis_sample": 7, **settings}
    return kind(p.model, p.loss, **asked).fit(p.batches() if data is None else data)


def projections(rows, sample=7):
    found = {}
    for block, g in rows.items():
        chosen = np.random.default_rng(0).permutation(len(g))[:sample]
        _, σ, V = np.linalg.svd(g[chosen].numpy(), full_matrices=False)
        r = 1 + int((np.cumsum(σ**2) < 0.95 * (σ**2).sum()).sum())
        found[block] = r, torch.from_numpy(V[:r].T @ V[:r])
    return found


def exact_influences(p):
    total, rows, asked = 0, p.rows(p.fitted), p.rows(p.test)
    for block, (_, P) in projections(rows).items():
        parts = rows[block] @ P
        M = dense.exact_matrix(parts, dense.automatic_damping(rows[block]))
        total = total + asked[block] @ P @ M @ parts.T
    return total


def test_influences_are_those_of_the_formulas():
    p = Problem(dense.exact_matrix)
    influence = fitted(p)
    ranks = {block: r for block, (r, _) in projections(p.rows(p.fitted)).items()}
    assert influence.ranks == ranks
    assert len(set(ranks.values())) > 1  # premise
    close(influence.training_influences(*p.test), exact_influences(p))


def test_they_are_chosen_anew_where_the_model_is_fitted_on_other_data():
    p, other = Problem(dense.exact_matrix), Problem(dense.exact_matrix, n=3)
    influence = fitted(p, data=other.batches())
    assert influence.ranks != fitted(p).ranks  # premise
    influence.fit(p.batches())
    assert influence.ranks == fitted(p).ranks
    assert influence.compression.is_open


def test_ranks_of_rows_that_are_whole_are_widths():
    p = Problem(dense.exact_matrix)
    assert DataInfInfluence(p.model, p.loss).fit(p.batches()).ranks == {"0": 20, "2": 24}
    assert fitted(p, DataInfInfluence, rank=22).ranks == {"0": 20, "2": 7}


def test_a_shuffled_loader_serves():
    p = Problem(dense.exact_matrix)
    data = DataLoader(TensorDataset(*p.fitted), 4, shuffle=True)
    ranks = fitted(p, data=data, basis_sample=11).ranks
    assert ranks == {b: r for b, (r, _) in projections(p.rows(p.fitted), 11).items()}


def test_they_belong_to_compressed_rows():
    p = Problem(dense.exact_matrix)
    with pytest.raises(SourceError, match="rank, basis_sample and basis_seed are those"):
        DataInfInfluence(p.model, p.loss, rank="auto")
