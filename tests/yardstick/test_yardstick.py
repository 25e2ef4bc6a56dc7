"""From scores and a training function to what the scores are worth."""

import linear
import numpy as np
import pytest
from distributed import Client
from rich.console import Console
from zarr.storage import MemoryStore

from pydvl_datainf import ExactInfluence, PlanError, StoreError, run_influences
from pydvl_datainf.runner.executors import InProcess
from pydvl_datainf.yardstick import Comparison, compare, half_subsets, retraining, validate


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bank of 40 halves."""
    location = tmp_path_factory.mktemp("bank") / "retrained"
    validate(linear.scores(), linear.Regression(), bank=location, subsets=40, progress=False)
    return location


def validated(location, given=None, train=None, **options):
    given = linear.scores() if given is None else given
    train = linear.Regression() if train is None else train
    return validate(given, train, bank=location, **{"subsets": 40, "progress": False} | options)


def shuffled():
    return np.random.default_rng(1).permuted(linear.scores(), axis=1)


def text(comparison):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(comparison)
    return capture.get()


def test_exact_influences_predict_retraining_in_order_and_size(place):
    found = validated(place)
    assert found.lds > 0.8
    assert found.error < 0.2
    assert found.ceiling > 0.99
    assert 0.7 < found.slope < 1.5
    assert (found.subsets, found.seeds) == (40, 2)


def test_shuffled_scores_predict_nothing(place):
    found = validated(place, shuffled())
    assert abs(found.lds) < 2 * found.error
    assert abs(found.slope) < 3 * found.slope_error
    reverse = validated(place, -linear.scores())
    np.testing.assert_allclose(reverse.lds, -validated(place).lds, rtol=1e-12)


def test_actual_changes_are_those_of_training_on_the_halves(place):
    found, train = validated(place), linear.Regression()
    members = half_subsets(linear.N, 40, 0)
    losses = [[train(np.flatnonzero(row), s) for s in (0, 1)] for row in members]
    np.testing.assert_allclose(found.actual, np.mean(losses, axis=1).T, rtol=1e-14)


def test_sums_over_checkpoints_are_divided_by_their_number(place):
    one, three = validated(place), validated(place, 3 * linear.scores(), checkpoints=3)
    np.testing.assert_allclose(three.slopes, one.slopes, rtol=1e-9)
    assert three.lds == pytest.approx(one.lds)
    raw = validated(place, 3 * linear.scores())
    np.testing.assert_allclose(raw.slopes, one.slopes / 3, rtol=1e-9)


def test_methods_are_compared_on_the_same_draws(place):
    methods = {"exact": linear.scores(), "shuffled": shuffled(), "triple": 3 * linear.scores()}
    found = compare(methods, place, checkpoints={"triple": 3})
    assert found.against == "exact"
    alone = validated(place, shuffled())
    value, error = found.differences["shuffled"]
    assert value == pytest.approx(alone.lds - validated(place).lds)
    assert -value > 3 * error > 0
    assert found.differences["triple"] == pytest.approx((0, 0), abs=1e-12)
    assert found.validations["triple"].slope == pytest.approx(found.validations["exact"].slope)
    other = compare(methods, place, against="shuffled", subsets=30, seeds=1)
    assert set(other.differences) == {"exact", "triple"}
    assert np.isnan(other.validations["exact"].ceiling)
    assert other.validations["exact"].subsets == 30


def test_the_table_has_a_line_for_each_method_and_the_ceiling(place):
    found = compare({"exact": linear.scores(), "[b]none\x1b": 0 * linear.scores()}, place)
    lines = text(found).splitlines()
    exact = found.validations["exact"]
    assert f"{exact.lds:.3f} ± {exact.error:.3f}" in next(
        line for line in lines if "exact " in line
    )
    none = next(line for line in lines if r"[b]none\x1b" in line)
    assert "0.000 ± 0.000" in none
    assert "undefined" in none
    assert f"{-exact.lds:.3f} ± " in none
    assert any("ceiling" in line and f"{exact.ceiling:.3f}" in line for line in lines)
    assert any("40 halves" in line for line in lines)
    small = compare({"large": 1e5 * linear.scores()}, place).validations["large"]
    assert f" {small.slope:.2g} ± " in text(Comparison({"large": small}, "large"))
    assert small.slope < 1e-4
    alone = text(Comparison({"exact": exact}, "exact"))
    assert "difference" not in alone


def test_a_run_has_its_bank_beside_it(tmp_path):
    import torch
    from torch import nn

    (x, y), (x_test, y_test) = linear.data()
    model = nn.Linear(linear.D, 1, bias=False).double()
    with torch.no_grad():
        model.weight[:] = torch.tensor(linear.solved(x, y))
    test, train = (
        [(torch.tensor(a), torch.tensor(b)[:, None])] for a, b in ((x_test, y_test), (x, y))
    )
    influence = ExactInfluence(model, nn.functional.mse_loss, regularization=0.1)
    run = run_influences(influence, test, train, tmp_path / "run.zarr", progress=False)
    found = validated(None, run)
    assert (tmp_path / "run.zarr.bank" / "zarr.json").exists()
    assert found.lds > 0.7
    beside = validated(tmp_path / "run.zarr.bank", np.asarray(run.scores))
    assert beside.lds == pytest.approx(found.lds)
    named = run_influences(
        influence, test, train, tmp_path / "named.zarr", ids={"test": list("abcde")}, progress=False
    )
    with pytest.raises(PlanError, match="'named' has other ids than"):
        compare({"run": run, "named": named}, tmp_path / "run.zarr.bank")
    with pytest.raises(StoreError, match="ids: other than in the store"):
        validated(tmp_path / "run.zarr.bank", named)


def test_scores_alone_need_a_place_for_the_bank():
    with pytest.raises(PlanError, match="Say where to keep the losses"):
        validated(None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"minutes": 1}, "subsets or minutes, not both"),
        ({"subsets": 9}, "9 subsets are too few"),
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"subsets": None, "minutes": 0}, "minutes must be a positive number"),
        ({"subsets": None, "minutes": float("nan")}, "minutes must be a positive number"),
        ({"checkpoints": 0}, "checkpoints must be 1 or more"),
        ({"n_jobs": 2, "client": "tcp://nobody"}, "client or n_jobs, not both"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused_before_anything_is_made(
    tmp_path, options, told
):
    with pytest.raises(PlanError, match=told):
        validated(tmp_path / "bank", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("methods", "options", "told"),
    [
        ({}, {}, "no methods to compare"),
        ({"a": np.zeros((5, 24))}, {"against": "b"}, r"no scores named \['b'\]"),
        ({"a": np.zeros((5, 24))}, {"checkpoints": {"b": 2}}, r"no scores named \['b'\]"),
        ({"a": np.zeros((5, 24))}, {"checkpoints": {"a": 0}}, "checkpoints must be"),
        ({"a": np.zeros((4, 24))}, {}, "'a' are of 4 test and 24 training samples"),
    ],
)
def test_what_cannot_be_compared_is_refused(place, methods, options, told):
    with pytest.raises(PlanError, match=told):
        compare(methods, place, **options)


class Timed:
    """A clock that is ten seconds on each time that it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 10
        return self.now


def test_time_decides_how_many_subsets_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retraining, "time", Timed())  # ten seconds each
    train = linear.Regression()
    found = validated(tmp_path / "bank", train=train, subsets=None, minutes=4, progress=True)
    assert found.subsets == 12
    assert len(train.calls) == 24
    told = capsys.readouterr().err
    assert "23 retrainings of 10 seconds: about 4 minutes. 12 subsets tell" in told
    more = linear.Regression()
    found = validated(tmp_path / "bank", train=more, subsets=None, minutes=1)
    assert (found.subsets, len(more.calls)) == (15, 6)


def test_as_many_are_measured_as_are_made_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retraining, "time", Timed())
    monkeypatch.setattr(InProcess, "at_once", 2)
    assert validated(tmp_path / "bank", subsets=None, minutes=2, progress=True).subsets == 12
    assert "22 retrainings of 10 seconds, 2 at once: about 110 seconds" in capsys.readouterr().err


def test_too_little_time_says_how_much_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "time", Timed())
    with pytest.raises(
        PlanError, match=r"takes 10 seconds.*2 of the subsets.*give 5.0 times as many"
    ):
        validated(tmp_path / "bank", subsets=None, minutes=2 / 3)


def test_a_little_more_time_is_told_to_be_more(tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "time", Timed())
    with pytest.raises(PlanError, match=r"9 of the subsets.*give 1.1 times as many"):
        validated(tmp_path / "bank", subsets=None, minutes=3.3)


def test_time_without_end_is_not_used_up(tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "MOST", 14)
    found = validated(tmp_path / "bank", subsets=None, minutes=60)
    assert found.subsets == 14
    assert validated(tmp_path / "bank", subsets=None, minutes=60).subsets == 14


@pytest.mark.usefixtures("fork_server")
def test_processes_make_the_same_losses(place, tmp_path):
    found = validated(tmp_path / "bank", subsets=12, n_jobs=2)
    assert (found.actual == validated(place, subsets=12).actual).all()


def test_a_cluster_makes_the_same_losses(place, tmp_path):
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
    with Client(**settings, dashboard_address=":0") as client:
        found = validated(MemoryStore(), subsets=12, client=client)
    assert (found.actual == validated(place, subsets=12).actual).all()
