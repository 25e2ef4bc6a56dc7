"""Runs behind side bases that are stopped, killed, damaged, or done by other processes."""

import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch

import stopped_run
from compressed_runs import assert_goes_on, assert_refused, assert_repaired, run_elsewhere, told
from damage import flip_a_byte
from fitted import close
from method_runs import results, stopped
from pydvl_datainf import InfluenceRun, StoreError, run_influences
from pydvl_datainf.inverse.sides import SideMoments, Sides
from sided_runs import SMALL, built_small, run_small
from small_runs import query_loader
from undisturbed import assert_same

run = partial(run_small, self_influence=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    store = tmp_path_factory.mktemp("sided") / "run.zarr"
    run(store)
    return store


STOPS = [
    ("write_side_moments", 2),
    ("write_sides", 2),
    ("write_sample", 2),
]


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, stop):
    store = tmp_path / "run.zarr"
    assert_goes_on(monkeypatch, stop, run, store, whole)
    assert not (store / "work").exists()


def test_what_is_damaged_is_made_again_with_the_same_bits(tmp_path, whole):
    store = shutil.copytree(whole, tmp_path / "run.zarr")
    flip_a_byte(store / "sides" / "1" / "c" / "0")
    assert_repaired(store, "sides/1", run, whole)


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
    done = run_elsewhere(monkeypatch, learning_otherwise, run, store)
    done.check()
    assert not np.array_equal(done.store.read("sides/1"), InfluenceRun(whole).store.read("sides/1"))
    close(asked(done, tmp_path / "query.zarr").scores[:], scores, 2e-3)  # half precision
    assert not (store / "work").exists()


@pytest.mark.parametrize("task", ["write_sample", "write_rows"])
def test_so_they_do_where_that_is_stopped(tmp_path, monkeypatch, damaged, task):
    store, scores = damaged
    with stopped(monkeypatch, task, 1) as patch:
        learning_otherwise(patch)
        run(store)
    done = run(store)
    close(asked(done, tmp_path / "query.zarr").scores[:], scores, 2e-3)
    done.check()


def test_a_begun_run_does_not_mix_rows_behind_two_sides(tmp_path, monkeypatch, whole):
    store = tmp_path / "run.zarr"
    with stopped(monkeypatch, "write_basis", 2):  # the sample waits as small rows
        run(store)
    (store / "sides" / "0" / "c" / "0").unlink()
    done = run_elsewhere(monkeypatch, learning_otherwise, run, store)
    close(done.scores[:], torch.from_numpy(InfluenceRun(whole).scores[:]), 2e-3)
    done.check()


def test_a_query_misses_sides_that_are_gone(tmp_path, damaged):
    with pytest.raises(StoreError, match="sides/1"):
        asked(InfluenceRun(damaged[0]), tmp_path / "query.zarr")
    assert not (tmp_path / "query.zarr").exists()


# Other processes


@pytest.mark.usefixtures("fork_server")
def test_worker_processes_leave_the_same_bits(tmp_path, whole):
    run(tmp_path / "run.zarr", n_jobs=2)
    assert results(tmp_path / "run.zarr") == results(whole)


@pytest.mark.slow
def test_so_do_workers_of_dask(tmp_path, whole, client):
    run(tmp_path / "run.zarr", client=client)
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
    assert_refused(whole, tmp_path / "run.zarr", told(whole) | said)
