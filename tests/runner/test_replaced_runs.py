"""Runs that are killed or stopped while they are deleted or replaced."""

import shutil
import signal

import pytest
import torch

import stopped_run
from pydvl_datainf import BatchError, DataInfInfluence, ModelError
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import entry
from stopped_run import build, run
from undisturbed import assert_same, count_gradients

pytestmark = pytest.mark.usefixtures("fork_server", "temporary")


def test_a_run_that_is_killed_while_intermediate_results_are_deleted(tmp_path, plain):
    store = tmp_path / "run.zarr"
    killed = stopped_run.ended(stopped_run.run_killed_in_deletion, store, "work", {})
    assert killed == -signal.SIGKILL
    assert list((store / "work").rglob("c"))  # the premise
    run(store)
    assert_same(store, plain)
    assert not (store / "work").exists()


def test_a_run_that_is_killed_while_it_replaces_another_one(tmp_path, plain, other):
    store = shutil.copytree(other, tmp_path / "run.zarr")
    settings, name = {"overwrite": True}, r"\.run\.zarr\.\d+\.old"
    killed = stopped_run.ended(stopped_run.run_killed_in_deletion, store, name, settings)
    assert killed == -signal.SIGKILL
    assert list(tmp_path.glob(".run.zarr.*.old/scores"))  # the premise
    (tmp_path / ".run.zarr.old").mkdir()
    (tmp_path / ".another.zarr.1.old").mkdir()
    run(store, overwrite=True)
    assert_same(store, plain)
    left = {path.name for path in tmp_path.iterdir()} - {"temporary"}
    assert left == {"run.zarr", ".run.zarr.old", ".another.zarr.1.old"}


def interrupted(store, **settings):
    with pytest.raises(KeyboardInterrupt):
        run(store, stopped_run.Interrupt(14), **settings)
    return InfluenceRun(store).attrs["gradients"]


@pytest.mark.parametrize("rows", ["recompute", "auto"])
def test_a_call_that_replaces_a_run_goes_on_when_it_is_repeated(
    tmp_path, monkeypatch, plain, other, rows
):
    store = shutil.copytree(other, tmp_path / "run.zarr")
    done = interrupted(store, overwrite=True, rows=rows)
    assert done > 0
    counted = count_gradients(monkeypatch)
    repeated = run(store, overwrite=True, rows=rows)
    assert sum(counted) == repeated.attrs["gradients"] - done
    run(tmp_path / "whole.zarr", rows=rows)
    assert_same(store, tmp_path / "whole.zarr")


@pytest.mark.parametrize(
    "change", [{"influence": build(regularization=0.1)}, {"tile": (3, 7)}, {"rows": "zarr"}]
)
def test_a_run_that_was_stopped_is_replaced_by_another(tmp_path, monkeypatch, change):
    interrupted(tmp_path / "run.zarr")
    run(tmp_path / "whole.zarr", **change)
    run(tmp_path / "run.zarr", overwrite=True, **change)
    assert_same(tmp_path / "run.zarr", tmp_path / "whole.zarr")


def test_a_run_of_other_versions_is_replaced_from_the_start(tmp_path, monkeypatch, plain):
    store = tmp_path / "run.zarr"
    monkeypatch.setattr(entry, "__version__", "0.0")
    interrupted(store)
    monkeypatch.undo()
    repeated = run(store, overwrite=True)
    assert repeated.attrs["gradients"] == InfluenceRun(plain).attrs["gradients"]
    assert repeated.attrs["versions"] == InfluenceRun(plain).attrs["versions"]
    assert_same(store, plain)


def test_a_complete_run_is_replaced_by_itself(tmp_path, monkeypatch, plain):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    counted = count_gradients(monkeypatch)
    run(store, overwrite=True)
    assert sum(counted) == InfluenceRun(plain).attrs["gradients"]
    assert_same(store, plain)


class Named(stopped_run.Network):
    """A network in which a module has another name."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, self._modules.pop("layers"))

    def forward(self, x):
        return next(self.children())(x)


def named(name, structure="module"):
    return DataInfInfluence(Named(name), torch.nn.functional.cross_entropy, "auto", structure)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return {"run": {"a": value}}


UNWRITABLE = {
    "deep metadata": ({"metadata": nested(150)}, BatchError, "nested at most 100 deep"),
    "deeper metadata": ({"metadata": nested(600)}, BatchError, "nested at most 100 deep"),
    "the name of a module": ({"influence": named("\ud800")}, ModelError, "half of a surrogate"),
    "the name of a block": (
        {"influence": named("layers", {"\udfff": ["layers.0.weight"]})},
        ModelError,
        "half of a surrogate",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_stored_replaces_nothing(tmp_path, plain, case):
    settings, kind, message = UNWRITABLE[case]
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    with pytest.raises(kind, match=message):
        run(store, overwrite=True, **settings)
    assert_same(store, plain)
    with pytest.raises(kind, match=message):
        run(tmp_path / "new.zarr", **settings)
    assert not (tmp_path / "new.zarr").exists()
