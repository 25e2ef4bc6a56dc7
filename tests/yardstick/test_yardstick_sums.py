"""What validate knows of a sum of runs, what it shows, and what it refuses of places and losses."""

import linear
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from pydvl_datainf import ExactInfluence, PlanError, run_influences, sum_runs
from pydvl_datainf.errors import NonFiniteError
from pydvl_datainf.yardstick import Bank, compare, validate


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of two checkpoints, the solution and one near it."""
    folder = tmp_path_factory.mktemp("runs")
    (x, y), (x_test, y_test) = linear.data()
    test, train = (
        [(torch.tensor(a), torch.tensor(b)[:, None])] for a, b in ((x_test, y_test), (x, y))
    )
    made = []
    for k in range(2):
        model = nn.Linear(linear.D, 1, bias=False).double()
        with torch.no_grad():
            model.weight[:] = torch.tensor(linear.solved(x, y)) * (1 - 0.1 * k)
        influence = ExactInfluence(model, nn.functional.mse_loss, regularization=0.1)
        made.append(run_influences(influence, test, train, folder / f"{k}.zarr", progress=False))
    return made


def validated(run, **options):
    train = linear.Regression()
    return validate(run, train, **{"subsets": 10, "seeds": 1, "progress": False} | options)


@pytest.mark.parametrize(("weights", "divisor"), [(None, 2), ([0.5, 0.5], 1), ([3.0, 1.0], 4)])
def test_changes_that_a_sum_predicts_are_divided_by_its_weights(runs, tmp_path, weights, divisor):
    total = sum_runs(runs, tmp_path / "sum.zarr", weights, progress=False)
    found = validated(total)
    array = np.asarray(total.scores[...], dtype=np.float64)
    bank = f"{total.store}.bank"
    members = Bank.open(bank).members(10)
    expected = np.stack([array.mean(1) - array[:, half].mean(1) for half in members], axis=1)
    np.testing.assert_allclose(found.predicted, expected / divisor, rtol=1e-9, atol=1e-15)
    beside = compare({"sum": total, "array": array, "told": total}, bank, checkpoints={"told": 8})
    np.testing.assert_array_equal(beside.validations["sum"].predicted, found.predicted)
    for name, other in (("array", 1), ("told", 8)):
        np.testing.assert_allclose(
            beside.validations[name].predicted * other, expected, rtol=1e-9, atol=1e-15
        )


def test_a_validation_is_shown_as_a_table_with_the_digits_that_count(tmp_path):
    found = validated(linear.scores(), bank=tmp_path / "bank", seeds=2)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(found)
    text = capture.get()
    assert f"{found.lds:.3f} ± {found.error:.3f}" in text
    assert f"{found.ceiling:.3f}" in text
    assert "10 halves" in text
    assert repr(found.lds) not in text


@pytest.mark.parametrize("place", ["", " "])
def test_an_empty_place_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="bank is empty"):
        validated(linear.scores(), bank=place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [1e308, -1e101, np.inf, np.nan])
def test_losses_that_diverged_are_refused(tmp_path, value):
    def train(indices, seed):
        return np.array([0.0, 1.0, value, 2.0, value])

    with pytest.raises(NonFiniteError, match=r"gave 2 losses .* test sample 2 first"):
        validate(linear.scores(), train, bank=tmp_path / "bank", progress=False)
    assert not Bank.open(tmp_path / "bank").done("losses")
