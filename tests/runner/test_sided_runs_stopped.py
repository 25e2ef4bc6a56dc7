"""Runs behind side bases that are stopped, killed, damaged, or done by other processes."""

import shutil
import signal

import numpy as np
import pytest
import torch
import zarr

import stopped_run
from damage import flip_a_byte
from fitted import close
from method_runs import results, stopping
from pydvl_datainf import InfluenceRun, StoreError, run_influences
from pydvl_datainf.inverse.sides import SideMoments, Sides
from pydvl_datainf.results.record import sealed_attributes
from sided_runs import SMALL, built_small
from sided_runs import run_small as run
from small_runs import query_loader
from undisturbed import assert_same

FULL = {"self_influence": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    store = tmp_path_factory.mktemp("sided") / "run.zarr"
    run(store, **FULL)
    return store


STOPS = [
    ("write_side_moments", 2),
    ("write_sides", 2),
    ("write_sample", 2),
]


@pytest.mark.parametrize(("name", "call"), STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, name, call):
    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        stopping(patch, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(store, **FULL)
    done = run(store, **FULL)
    assert results(store) == results(whole)
    assert done.attrs["gradients"] == InfluenceRun(whole).attrs["gradients"]
    assert not (store / "work").exists()


def test_what_is_damaged_is_made_again_with_the_same_bits(tmp_path, whole):
    store = shutil.copytree(whole, tmp_path / "run.zarr")
    flip_a_byte(store / "sides" / "1" / "c" / "0")
    with pytest.raises(StoreError, match="sides/1"):
        InfluenceRun(store).check()
    run(store, **FULL)
    assert results(store) == results(whole)
    InfluenceRun(store).check()


def learning_otherwise(patch):
    """As another machine may, whose eigenvectors have other signs."""
    learned = SideMoments.leading

    def leading(self, widths, dtype):
        sides = learned(self, widths, dtype)
        return Sides(sides.Q_o.flip(1), -sides.Q_i, sides.has_bias)

    patch.setattr(SideMoments, "leading", leading)


def asked(done, store):
    settings = {"tile": (2, None), "memory": "1MiB", "progress": False}
    return run_influences(built_small(), query_loader(), done, store, **settings)


@pytest.fixture
def damaged(tmp_path, whole):
    """A run that lost side bases, beside its scores."""
    store = shutil.copytree(whole, tmp_path / "run.zarr")
    (store / "sides" / "1" / "c" / "0").unlink()
    return store, torch.from_numpy(InfluenceRun(whole).scores[:])


def test_rows_follow_sides_that_are_learned_again(tmp_path, monkeypatch, damaged, whole):
    store, scores = damaged
    with monkeypatch.context() as patch:
        learning_otherwise(patch)
        done = run(store, **FULL)
    done.check()
    assert not np.array_equal(done.store.read("sides/1"), InfluenceRun(whole).store.read("sides/1"))
    close(asked(done, tmp_path / "query.zarr").scores[:], scores, 2e-3)  # half precision
    assert not (store / "work").exists()


@pytest.mark.parametrize("task", ["write_sample", "write_rows"])
def test_so_they_do_where_that_is_stopped(tmp_path, monkeypatch, damaged, task):
    store, scores = damaged
    with monkeypatch.context() as patch:
        learning_otherwise(patch)
        stopping(patch, task, 1)
        with pytest.raises(KeyboardInterrupt):
            run(store, **FULL)
    done = run(store, **FULL)
    close(asked(done, tmp_path / "query.zarr").scores[:], scores, 2e-3)
    done.check()


def test_a_begun_run_does_not_mix_rows_behind_two_sides(tmp_path, monkeypatch, whole):
    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        stopping(patch, "write_basis", 2)  # the sample waits as small rows
        with pytest.raises(KeyboardInterrupt):
            run(store, **FULL)
    (store / "sides" / "0" / "c" / "0").unlink()
    with monkeypatch.context() as patch:
        learning_otherwise(patch)
        done = run(store, **FULL)
    close(done.scores[:], torch.from_numpy(InfluenceRun(whole).scores[:]), 2e-3)
    done.check()


def test_a_query_misses_sides_that_are_gone(tmp_path, damaged):
    with pytest.raises(StoreError, match="sides/1"):
        asked(InfluenceRun(damaged[0]), tmp_path / "query.zarr")
    assert not (tmp_path / "query.zarr").exists()


# Other processes


@pytest.mark.usefixtures("fork_server")
def test_worker_processes_leave_the_same_bits(tmp_path, whole):
    run(tmp_path / "run.zarr", n_jobs=2, **FULL)
    assert results(tmp_path / "run.zarr") == results(whole)


@pytest.mark.slow
def test_so_do_workers_of_dask(tmp_path, whole, client):
    run(tmp_path / "run.zarr", client=client, **FULL)
    assert results(tmp_path / "run.zarr") == results(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_a_run_that_is_killed_while_it_writes_moments_goes_on(tmp_path):
    store, key = tmp_path / "run.zarr", "work/sides/0/c/1/0"
    function = stopped_run.run_killed_in_write
    assert stopped_run.ended(function, store, key, 1, SMALL) == -signal.SIGKILL
    assert list(store.rglob("*.partial"))  # the premise: a file that has not got its name
    stopped_run.run(store, **SMALL)
    stopped_run.run(tmp_path / "whole.zarr", **SMALL)
    assert_same(store, tmp_path / "whole.zarr")


# The record


@pytest.mark.parametrize(
    "said",
    [
        {"sides": None},
        {"sides": 1},
        {"sides": 1.5},
        {"layers": {"2": [4, 6]}},
        {"layers": {"2": [4, 5, True]}},
        {"layers": {"other": [4, 6, True]}},
    ],
)
def test_attributes_that_cannot_be_are_named(tmp_path, whole, said):
    store = shutil.copytree(whole, tmp_path / "run.zarr")
    group = zarr.open_group(store, mode="r+")
    told = dict(group.attrs)
    told["fingerprint"]["compression"] |= said
    group.attrs.update(sealed_attributes(told))
    with pytest.raises(StoreError, match="compression is "):
        InfluenceRun(store)
