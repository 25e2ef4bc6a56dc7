"""Runs of every kind as what is validated, and what a validation leaves alone."""

import random

import linear
import numpy as np
import pytest
import torch
from torch import nn

from pydvl_datainf import (
    ExactInfluence,
    ObjectiveError,
    PlanError,
    StoreError,
    run_influences,
    sum_runs,
)
from pydvl_datainf.yardstick import Bank, compare, validate, validate_removal

GROUPS = ["a", "b", "a", "b", "a"]
QUIET = {"progress": False, "subsets": 10, "seeds": 1}


class TwoLayers(nn.Module):
    """A regression cut into two blocks that see the same inputs."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(linear.D, 1, bias=False).double()
        self.two = nn.Linear(linear.D, 1, bias=False).double()

    def forward(self, x):
        return self.one(x) + self.two(x)


def made(place, **options):
    (x, y), (x_test, y_test) = linear.data()
    torch.manual_seed(0)
    influence = ExactInfluence(TwoLayers(), nn.functional.mse_loss, regularization=0.1)
    test, train = (
        [(torch.tensor(a), torch.tensor(b)[:, None])] for a, b in ((x_test, y_test), (x, y))
    )
    return run_influences(influence, test, train, place, progress=False, **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = made(tmp_path_factory.mktemp("runs") / "plain.zarr")
    return run, validate(run, linear.Regression(), **QUIET)


@pytest.mark.parametrize("options", [{"by_block": True}, {"tile": (2, 7), "by_block": True}])
def test_runs_with_blocks_or_tiles_predict_the_same(plain, tmp_path, options):
    run, expected = plain
    other = made(tmp_path / "other.zarr", **options)
    found = compare({"other": other}, f"{run.store}.bank").validations["other"]
    np.testing.assert_allclose(found.predicted, expected.predicted, rtol=1e-9, atol=1e-12)
    places = {"bank": f"{run.store}.bank", "k": 3, "tests": 3, "draws": 2, "progress": False}
    one, two = (validate_removal(r, linear.Regression(), **places) for r in (run, other))
    np.testing.assert_allclose(one.predicted, two.predicted, rtol=1e-9)
    np.testing.assert_array_equal(one.helpful, two.helpful)


def test_a_sum_of_runs_with_blocks_predicts_their_mean(plain, tmp_path):
    run, expected = plain
    parts = [made(tmp_path / f"{k}.zarr", by_block=True) for k in range(2)]
    total = sum_runs(parts, tmp_path / "sum.zarr", progress=False)
    found = compare({"sum": total}, f"{run.store}.bank").validations["sum"]
    np.testing.assert_allclose(found.predicted, expected.predicted, rtol=1e-9, atol=1e-12)


def test_of_a_run_on_groups_the_means_of_their_losses_are_predicted(plain, tmp_path):
    _, expected = plain
    run = made(tmp_path / "groups.zarr", query_groups=GROUPS)
    means = [[np.equal(GROUPS, group) / GROUPS.count(group)] for group in run.test_ids]
    train, means = linear.Regression(), np.concatenate(means)
    found = validate(run, lambda indices, seed: means @ train(indices, seed), **QUIET)
    np.testing.assert_allclose(found.predicted, means @ expected.predicted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.actual, means @ expected.actual, rtol=1e-12)
    with pytest.raises(ObjectiveError, match="each of the 2 test samples, or groups"):
        validate(run, train, bank=tmp_path / "bank", **QUIET)


def test_ids_in_another_order_are_refused(plain, tmp_path):
    run, _ = plain
    order = np.random.default_rng(0).permutation(linear.N)
    other = made(tmp_path / "other.zarr", ids={"train": order})
    with pytest.raises(PlanError, match=r"other ids than .*, or in another order"):
        compare({"other": other}, f"{run.store}.bank")
    with pytest.raises(StoreError, match="ids"):
        validate(other, linear.Regression(), bank=f"{run.store}.bank", **QUIET)
    assert len(Bank.open(f"{run.store}.bank").done("losses")) == 10


def test_global_generators_are_as_before(plain, tmp_path):
    run, _ = plain
    np.random.seed(3)  # noqa: NPY002 - a caller's generator
    torch.manual_seed(3)
    random.seed(3)
    before = (np.random.get_state()[1].tolist(), torch.get_rng_state(), random.getstate())  # noqa: NPY002
    validate(run, linear.Regression(), bank=tmp_path / "bank", **QUIET)
    compare({"run": run}, tmp_path / "bank")
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
