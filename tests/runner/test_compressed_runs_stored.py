"""Stores with compressed rows: stopped, damaged, queried, added and asked for otherwise."""

import shutil
from functools import partial

import numpy as np
import pytest

from compressed_runs import (
    RANK,
    SAMPLE,
    assert_goes_on,
    assert_refused,
    assert_repaired,
    loader,
    run,
)
from damage import flip_a_byte
from method_runs import datainf, exact, results
from piece_runs import WIDTHS, network
from pydvl_datainf import (
    PlanError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
    sum_runs,
)
from pydvl_datainf.results.reader import InfluenceRun
from small_runs import close

# Interruption, executors and damage

FULL = {"m": 2, "self_influence": True, "exact_sample": 5}
run_fully = partial(run, **FULL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped, in several pieces, with all that there may be."""
    store = tmp_path_factory.mktemp("compressed") / "run.zarr"
    run_fully(store)
    return store


STOPS = [
    ("write_sample", 1),
    ("write_sample", 3),
    ("write_basis", 1),
    ("write_basis", 3),
    ("write_rows", 1),
    ("write_compression_error", 1),
    ("write_vectors", 1),
    ("write_piece", 4),
    ("write_approximation_error", 1),
]


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, whole, monkeypatch, stop):
    assert_goes_on(monkeypatch, stop, run_fully, tmp_path / "run.zarr", whole)


@pytest.mark.parametrize(
    "key",
    ["bases/2/c/0/0", "rows/1/c/1/0", "outside_norms/c/1/0", "energy/c/0", "compression_error/c/0"],
)
@pytest.mark.parametrize("harm", [flip_a_byte, lambda file: file.unlink()])
def test_what_is_damaged_is_made_again_with_the_same_bits(tmp_path, whole, key, harm):
    store = shutil.copytree(whole, tmp_path / "run.zarr")
    harm(store / key)
    assert_repaired(store, key.split("/c/")[0], run_fully, whole)


@pytest.mark.usefixtures("fork_server")
def test_worker_processes_leave_the_same_bits(tmp_path, whole):
    run_fully(tmp_path / "run.zarr", n_jobs=2)
    assert results(tmp_path / "run.zarr") == results(whole)


def test_further_queries_need_only_the_run(tmp_path, whole):
    ask = datainf(model=network())
    settings = {"tile": (2, None), "memory": "1MiB", "progress": False}
    query = run_influences(ask, loader(2), InfluenceRun(whole), tmp_path / "query.zarr", **settings)
    assert np.array_equal(query.scores[:], InfluenceRun(whole).scores[:])
    assert query.energy == InfluenceRun(whole).energy
    query.check()
    again = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, **settings}
    same = run_influences(ask, loader(2), query, tmp_path / "same.zarr", **again)
    assert np.array_equal(same.scores[:], query.scores[:])


def test_self_influences_are_made_of_what_is_stored(tmp_path, whole):
    done = run(tmp_path / "run.zarr", m=2)
    assert np.array_equal(compute_self_influence(done), InfluenceRun(whole).self_influence())


def test_runs_add_up(tmp_path, whole):
    first, second = InfluenceRun(whole), run(tmp_path / "exact.zarr", exact, m=2, rank=7)
    added = sum_runs([first, second], tmp_path / "sum.zarr", [1.0, 0.5], progress=False)
    close(added.scores[:], first.scores[:] + 0.5 * second.scores[:])
    assert added.energy is None
    added.check()


# Asked for otherwise


@pytest.mark.parametrize(
    "other", [{"rank": 19}, {"basis_sample": 20}, {"basis_seed": 1}, {"rows": "memory"}]
)
def test_another_compression_is_another_run(whole, other):
    asked = {**FULL, "memory": "1MiB", **other}
    asked |= {"rank": None, "basis_sample": None} if "rows" in other else {}
    with pytest.raises(StoreExistsError, match="compression"):
        run(whole, **asked)


def test_a_query_cannot_ask_for_another(tmp_path, whole):
    ask, place = datainf(model=network()), tmp_path / "query.zarr"
    with pytest.raises(PlanError, match=r"keeps its training rows with rank=\d+, .*otherwise"):
        run_influences(ask, loader(2), InfluenceRun(whole), place, rows="compressed", rank=3)
    with pytest.raises(PlanError, match="are those of compressed rows"):
        run_influences(ask, loader(2), InfluenceRun(whole), place, rank=3)


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"rank": 20, "basis_sample": 21, "basis_seed": 0, "widths": [1]},
        {"rank": 0, "basis_sample": 21, "basis_seed": 0, "widths": WIDTHS},
        {"rank": 19, "basis_sample": 21, "basis_seed": 0, "widths": WIDTHS},
        {"rank": 20, "basis_sample": 21, "basis_seed": 0, "widths": [*WIDTHS[:4], 0]},
        {"rank": 20, "basis_sample": 21, "basis_seed": 0, "widths": "many"},
    ],
)
def test_attributes_that_cannot_be_are_named(tmp_path, whole, said):
    assert_refused(whole, tmp_path / "run.zarr", said)
