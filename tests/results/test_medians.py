"""Medians of influences over test samples, read in parts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, StoreError, run_influences
from pydvl_datainf.results import medians
from pydvl_datainf.results.medians import column_medians
from small_runs import samples

N = 13
KINDS = {"sums": {}, "blocks": {"by_block": True}, "tiles": {"tile": (50, 50)}}


def run(store, m, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    influence = DataInfInfluence(model, F.cross_entropy)
    settings = {"tile": (2, 5), "progress": False, **settings}
    return run_influences(influence, samples(m, 2), samples(N, 1), store, **settings)


def truth(done):
    scores = np.asarray(done.scores[...])
    scores = scores.sum(1) if scores.ndim == 3 else scores
    middle = np.sort(scores, axis=0)
    return (middle[(len(scores) - 1) // 2] + middle[len(scores) // 2]) / 2


@pytest.mark.parametrize("m", [1, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_medians_are_the_middle_scores(tmp_path, m, kind):
    done = run(tmp_path / "run.zarr", m, **KINDS[kind])
    expected = truth(done)
    np.testing.assert_allclose(done.median_influence(), expected, rtol=1e-12, atol=1e-15)
    assert done.median_influence().dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [1, 11, 1000])
def test_no_more_scores_are_held_than_may_be(tmp_path, monkeypatch, kind, at_once):
    m = 5
    done = run(tmp_path / "run.zarr", m, **KINDS[kind])
    sizes, read = [], done.store.read

    def watched(name, where):
        values = read(name, where)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(done.store, "read", watched)
    found = column_medians(done.store, done.plan, at_once)
    np.testing.assert_allclose(found, truth(done), rtol=1e-12, atol=1e-15)
    least = m if kind == "tiles" else 2 * (1 + (kind == "blocks"))  # those of one training sample
    assert max(sizes) <= max(at_once, least)


def test_a_mean_is_another_thing(tmp_path):
    done = run(tmp_path / "run.zarr", 5)
    assert not np.allclose(done.median_influence(), done.mean_influence())


def test_groups_have_the_median_of_their_means(tmp_path):
    done = run(tmp_path / "run.zarr", 5, query_groups=["a", "b", "c", "a", "b"])
    assert done.plan.m == 3
    np.testing.assert_allclose(done.median_influence(), truth(done), rtol=1e-12, atol=1e-15)


def test_the_top_has_no_median(tmp_path):
    done = run(tmp_path / "run.zarr", 5, top_k=3)
    with pytest.raises(StoreError, match=r"kept the top 3 of each test sample.*without top_k"):
        done.median_influence()


def test_a_damaged_chunk_is_named(tmp_path):
    done = run(tmp_path / "run.zarr", 5)
    (tmp_path / "run.zarr/scores/c/1/2").unlink()
    with pytest.raises(StoreError, match="scores/c/1/2"):
        done.median_influence()


def test_a_run_that_is_not_complete_has_none(tmp_path, monkeypatch):
    done = run(tmp_path / "run.zarr", 5)
    done.attrs["complete"] = False
    monkeypatch.setattr(medians, "column_medians", None)
    with pytest.raises(StoreError, match="is not complete"):
        done.median_influence()
