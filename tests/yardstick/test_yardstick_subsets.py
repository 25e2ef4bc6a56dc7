"""Halves, and the changes of loss that scores predict for them."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from pydvl_datainf import DataInfInfluence, InfluenceRun, PlanError, StoreError, run_influences
from pydvl_datainf.yardstick import Scores, half_subsets
from pydvl_datainf.yardstick.subsets import merged


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function that makes a run of a tiny model, with tiles smaller than its sides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    train, test = (
        [(torch.randn(k, 3).double(), torch.randn(k, 1).double()) for k in sizes]
        for sizes in ((3, 4), (2, 1))
    )
    influence = DataInfInfluence(model, nn.functional.mse_loss, regularization=0.1)

    def made(**options):
        store = tmp_path_factory.mktemp("run") / "run.zarr"
        return run_influences(influence, test, train, store, progress=False, **options)

    return made


@pytest.mark.parametrize("n", [2, 7, 10])
def test_halves_have_half_the_samples_and_begin_with_the_same(n):
    few, many = half_subsets(n, 5, 3), half_subsets(n, 40, 3)
    assert (many.sum(axis=1) == n // 2).all()
    assert (many[:5] == few).all()
    assert len(np.unique(many, axis=0)) > 1
    assert 0.1 < many.mean(axis=0).min() <= many.mean(axis=0).max() < 0.9
    assert (half_subsets(n, 40, 4) != many).any()


def test_one_sample_has_no_half():
    with pytest.raises(PlanError, match="Half of 1 training samples is none"):
        half_subsets(1, 3, 0)


def test_predicted_changes_are_half_the_difference_of_the_halves():
    scores = np.random.default_rng(0).normal(size=(3, 8))
    members = half_subsets(8, 6, 0)
    expected = [
        [-(row[inside].sum() - row[~inside].sum()) / 8 for inside in members] for row in scores
    ]
    found = Scores.of(scores).predicted_changes(members)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_predicted_changes_where_n_is_odd_are_means_of_all_less_those_of_the_subset():
    scores = np.random.default_rng(0).normal(size=(3, 7))
    members = half_subsets(7, 6, 0)
    expected = [[row.mean() - row[inside].mean() for inside in members] for row in scores]
    found = Scores.of(torch.tensor(scores, requires_grad=True)).predicted_changes(members)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_equal_scores_predict_nothing_at_all():
    scores = np.array([np.full(9, 0.1), np.arange(9.0)])
    found = Scores.of(scores).predicted_changes(half_subsets(9, 20, 0))
    assert (found[0] == 0).all()
    assert np.ptp(found[1]) > 0


@pytest.mark.parametrize("options", [{}, {"by_block": True}], ids=["whole", "by block"])
def test_a_run_predicts_what_its_matrix_does(make, options):
    run = make(tile=(2, 3), **options)
    matrix = np.asarray(run.scores)
    matrix = matrix.reshape(3, -1, 7).sum(axis=1)
    assert matrix.std() > 0
    members = half_subsets(7, 10, 0)
    found, expected = (Scores.of(given).predicted_changes(members) for given in (run, matrix))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(matrix).max())
    assert Scores.of(run).ids == Scores.of(matrix).ids  # positions, both


def test_ids_tell_data_apart(make):
    ids = {"train": list("abcdefg")}
    named, other = make(ids=ids), make(ids={"train": list("gfedcba")})
    assert len({Scores.of(run).ids for run in (named, other, make())}) == 3


def test_a_run_that_kept_its_top_alone_is_refused(make):
    with pytest.raises(PlanError, match="kept only the ends of its scores"):
        Scores.of(make(top_k=2))


def test_a_run_that_is_not_complete_is_refused(make):
    run = make()
    file = run.store.path / "zarr.json"
    file.write_text(re.sub(r'"complete": true', '"complete": false', file.read_text()))
    with pytest.raises(StoreError, match="is not complete"):
        Scores.of(InfluenceRun.open(run.store.path))


@pytest.mark.parametrize("given", [np.zeros(4), np.zeros((2, 0)), np.array([["a"]]), [[True]]])
def test_what_is_no_matrix_of_numbers_is_refused(given):
    with pytest.raises(PlanError, match="a row for each test sample"):
        Scores.of(given)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(PlanError, match="2 scores are not finite"):
        Scores.of(np.array([[1, np.nan, np.inf]]))


@pytest.mark.parametrize(("n", "M"), [(101, 50), (12, 30), (60, 40)])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.3), (-1e6, 1e6 + 0.1)])
def test_predictions_that_are_equal_are_not_put_in_an_order_by_rounding(n, M, low, high):
    """Scores of two values: the prediction follows from how many of each are in a subset."""
    is_high = np.random.default_rng(0).random((4, n)) < 0.3
    members = half_subsets(n, M, 0)
    found = Scores.of(np.where(is_high, high, low)).predicted_changes(members)
    counts = is_high.astype(int) @ members.T.astype(int)
    for row, count in zip(found, counts, strict=True):
        same = (row[:, None] == row) == (count[:, None] == count)
        assert same.all()
        assert ((row[:, None] < row) == (count[:, None] > count)).all()


def test_values_are_merged_up_to_a_tolerance_and_no_further():
    values = np.array([[3.0, 1.0, 1.0 + 1e-9, 2.0, -1e-9], [1.0, 1.1, 1.2, 1.3, 5.0]])
    found = merged(values, np.array([[1e-8], [1e-8]]))
    assert found.tolist() == [[3.0, 1.0, 1.0, 2.0, 0.0], [1.0, 1.1, 1.2, 1.3, 5.0]]


def test_masked_scores_are_refused():
    scores = np.ma.masked_greater(np.arange(6.0).reshape(2, 3), 4)
    with pytest.raises(ValueError, match="entries of an array are masked"):
        Scores.of(scores)
