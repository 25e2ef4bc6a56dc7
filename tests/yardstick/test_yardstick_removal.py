"""Removing the most helpful training samples, against a loop of retrainings."""

import linear
import numpy as np
import pytest
import zarr

from pydvl_datainf import PlanError
from pydvl_datainf.yardstick import validate, validate_removal

K = 6


def removed(place, given=None, train=None, **options):
    given = linear.scores() if given is None else given
    train = linear.Regression() if train is None else train
    settings = {"k": K, "tests": linear.M, "draws": 4, "progress": False} | options
    return validate_removal(given, train, bank=place, **settings)


def mean_loss(without):
    train, rest = linear.Regression(), np.setdiff1d(np.arange(linear.N), without)
    return np.mean([train(rest, seed) for seed in (0, 1)], axis=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    location = tmp_path_factory.mktemp("bank") / "retrained"
    removed(location)
    return location


def test_changes_are_those_of_training_without_the_largest_scores(place):
    found, scores, base = removed(place), linear.scores(), mean_loss([])
    assert found.tests.tolist() == list(range(linear.M))
    for t, row in enumerate(scores):
        best = np.argsort(row)[-K:]
        change = mean_loss(best)[t] - base[t]
        np.testing.assert_allclose(found.helpful[t], change, rtol=1e-12)
        rest = np.setdiff1d(np.arange(linear.N), best)
        np.testing.assert_allclose(found.predicted[t], row.mean() - row[rest].mean(), rtol=1e-9)


def test_removing_what_helps_harms_more_than_removing_what_comes(place):
    found = removed(place)
    value, error = found.beyond_random
    difference = found.helpful - found.random
    assert value == difference.mean()
    assert error == pytest.approx(difference.std(ddof=1) / linear.M**0.5)
    assert value > 0
    assert (found.helpful > found.random).sum() >= 4
    assert found.mean[0] == found.helpful.mean()
    backwards = removed(place, -linear.scores())
    assert backwards.beyond_random[0] < 0
    assert (backwards.random == found.random).all()


def test_random_removals_are_means_over_draws(place):
    found, base = removed(place), mean_loss([])
    rows = zarr.open_group(place, mode="r")["removed"][:4]
    assert (rows.sum(axis=1) == K).all()
    changes = [mean_loss(np.flatnonzero(row)) - base for row in rows]
    np.testing.assert_allclose(found.random, np.mean(changes, axis=0), rtol=1e-9)


def test_nothing_is_trained_twice_and_halves_share_the_bank(place, tmp_path):
    again = linear.Regression()
    removed(place, train=again)
    assert again.calls == []
    fewer = linear.Regression()
    few = removed(place, train=fewer, tests=3)
    assert (len(few.tests), len(fewer.calls)) == (3, 0)
    halves = validate(linear.scores(), linear.Regression(), bank=place, subsets=10, progress=False)
    assert halves.subsets == 10


@pytest.mark.parametrize("stop", [1, 2, 9, 17])
def test_a_stopped_call_goes_on(place, tmp_path, stop):
    with pytest.raises(KeyboardInterrupt):
        removed(tmp_path / "bank", train=linear.Regression(stop))
    rest = linear.Regression()
    found = removed(tmp_path / "bank", train=rest)
    assert len(rest.calls) == 2 * (1 + 4 + linear.M) - stop
    assert (found.helpful == removed(place).helpful).all()


@pytest.mark.parametrize("array", ["removed", "removal_losses"])
def test_what_is_damaged_is_trained_again(place, tmp_path, array):
    bank = tmp_path / "bank"
    before = removed(bank)
    chunk = next(path for path in (bank / array / "c" / "5").rglob("*") if path.is_file())
    chunk.write_bytes(b"")
    rest = linear.Regression()
    after = removed(bank, train=rest)
    assert 1 <= len(rest.calls) <= 2
    assert (after.helpful == before.helpful).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "k must be 1 to 23"),
        ({"k": 24}, "k must be 1 to 23"),
        ({"tests": 1}, "tests must be 2 to 5"),
        ({"tests": 6}, "tests must be 2 to 5"),
        ({"draws": 0}, "draws must be a positive number"),
        ({"seeds": 0}, "seeds must be 1 or more"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, options, told):
    with pytest.raises(PlanError, match=told):
        removed(tmp_path / "bank", **options)
    assert not list(tmp_path.iterdir())
