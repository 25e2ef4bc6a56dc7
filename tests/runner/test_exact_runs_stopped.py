"""Runs with the exact inverse that are stopped or damaged, and go on to the same bits."""

import shutil

import pytest

from exact_runs import TIGHT, N, run
from method_runs import exact, results, stopped
from pydvl_datainf import StoreError
from pydvl_datainf.results.reader import InfluenceRun

SMALL = {"memory": TIGHT[exact], "tile": (8, 12), "self_influence": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stores of exact runs that nothing stopped, by how rows are kept; in two groups."""
    folder = tmp_path_factory.mktemp("whole")
    for rows in ("memory", "zarr"):
        run(folder / rows, exact(), rows=rows, **SMALL)
    return folder


STOPS = [
    ("memory", "write_piece", 2),
    ("memory", "write_self_sum", 1),
    ("zarr", "write_rows", 1),
    ("zarr", "write_piece", 2),
    ("zarr", "write_self_sum", 1),
    ("zarr", "write_mean", 2),
]


@pytest.mark.parametrize(("rows", "name", "call"), STOPS)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, rows, name, call):
    store = tmp_path / "run.zarr"
    with stopped(monkeypatch, name, call):
        run(store, exact(), rows=rows, **SMALL)
    done = InfluenceRun(store).attrs["gradients"]
    assert not InfluenceRun(store).is_complete
    run(store, exact(), rows=rows, **SMALL)
    assert results(store) == results(whole / rows)
    again = InfluenceRun(store).attrs["gradients"] - done
    total = InfluenceRun(whole / rows).attrs["gradients"]
    assert again <= total - done + (N if rows == "memory" else 0)


def test_vectors_of_which_a_part_is_missing_are_computed_again(tmp_path, whole, monkeypatch):
    store = tmp_path / "run.zarr"
    with stopped(monkeypatch, "write_piece", 2):
        run(store, exact(), rows="zarr", **SMALL)
    (store / "work/vectors/0/c/0/3/0").unlink()
    run(store, exact(), rows="zarr", **SMALL)
    assert results(store) == results(whole / "zarr")


@pytest.mark.parametrize("key", ["scores/c/1/0", "rows/0/c/1/0", "self_influence/c/1"])
def test_damage_is_repaired(tmp_path, whole, key):
    store = shutil.copytree(whole / "zarr", tmp_path / "run.zarr")
    (store / key).unlink()
    with pytest.raises(StoreError, match=key):
        InfluenceRun(store).check()
    run(store, exact(), rows="zarr", **SMALL)
    assert results(store) == results(whole / "zarr")
