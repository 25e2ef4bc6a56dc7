"""Runs in several pieces that are stopped, killed or damaged, and go on to the same bits."""

import shutil
import signal
from functools import partial

import pytest

import stopped_run
from damage import flip_a_byte
from method_runs import datainf, recorded, results, stopped
from piece_runs import PIECES, TIGHT, run
from pydvl_datainf import StoreError
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import tasks


def times(store):
    return {name: (store / name).stat().st_mtime_ns for name in results(store)}


def pieces_worked_on(monkeypatch):
    seen = []
    recorded(monkeypatch, tasks, "write_piece", lambda work, *_: seen.append(work))
    return seen


FULL = {"self_influence": True, "memory": TIGHT[datainf]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stores of runs that nothing stopped, in several groups of queries."""
    folder = tmp_path_factory.mktemp("whole")
    for name, settings in KINDS.items():
        run(folder / name, **FULL | settings)
    return folder


KINDS = {"all": {}, "top": {"top_k": 3}, "by block": {"by_block": True}}


@pytest.mark.parametrize(
    ("kind", "call"),
    [*(("all", call) for call in (2, 3, 4, 5)), ("top", 2), ("top", 4), ("by block", 3)],
)
def test_a_run_that_was_stopped_goes_on_with_the_piece_that_is_missing(
    tmp_path, whole, monkeypatch, kind, call
):
    store, settings = tmp_path / "run.zarr", FULL | KINDS[kind]
    with stopped(monkeypatch, "write_piece", call):
        run(store, **settings)
    before = InfluenceRun(store).attrs["gradients"]
    worked = pieces_worked_on(monkeypatch)
    done = run(store, **settings)
    assert results(store) == results(whole / kind)
    order = [(p, q) for q in range(len(done.plan.groups)) for p in range(len(PIECES))]
    assert [(work.piece, work.group) for work in worked] == order[call - 1 :]
    assert done.attrs["gradients"] == InfluenceRun(whole / kind).attrs["gradients"]
    assert before <= done.attrs["gradients"]


@pytest.mark.parametrize(
    ("name", "call"),
    [("write_sums", 1), ("write_sums", 3), ("write_self_sum", 1), ("write_mean", 3)],
)
def test_a_run_that_was_stopped_later_works_on_no_piece_again(
    tmp_path, whole, monkeypatch, name, call
):
    store = tmp_path / "run.zarr"
    with stopped(monkeypatch, name, call):
        run(store, **FULL)
    worked = pieces_worked_on(monkeypatch)
    run(store, **FULL)
    assert results(store) == results(whole / "all")
    assert not [work for work in worked if work.group in (0, None)]  # the first group was there


def wide(store, **settings):
    return stopped_run.run(store, influence=stopped_run.build(hidden=64), rows="zarr", **settings)


@pytest.mark.parametrize(
    "key", ["work/scores/0/c/3/3", "work/scores/1/c/0/0", "work/scores/1/c/2/1", "rows/1/c/1/0"]
)
def test_a_run_that_is_killed_in_a_piece_goes_on(tmp_path, fork_server, key):
    wide(tmp_path / "whole.zarr")
    assert len(InfluenceRun(tmp_path / "whole.zarr").plan.pieces) == 2  # the premise
    store, function = tmp_path / "run.zarr", stopped_run.run_killed_in_write
    settings = {"influence": stopped_run.build(hidden=64), "rows": "zarr"}
    assert stopped_run.ended(function, store, key, 1, settings) == -signal.SIGKILL
    wide(store)
    assert results(store) == results(tmp_path / "whole.zarr")
    InfluenceRun(store).check()


def test_partial_scores_are_deleted_once_they_are_added(tmp_path, monkeypatch):
    found, store = {"write_vectors": [], "write_sums": []}, tmp_path / "run.zarr"
    for name, seen in found.items():
        look = partial(lambda seen, *_: seen.append(any(store.glob("work/scores/*/c"))), seen)
        recorded(monkeypatch, tasks, name, look)
    done = run(store, **FULL)
    assert len(done.plan.groups) > 1  # the premises
    assert len(found["write_vectors"]) == len(done.plan.test)
    assert all(found["write_sums"])
    assert not any(found["write_vectors"])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_rows_of_a_piece_are_computed_again(tmp_path, whole, monkeypatch, kind):
    store = shutil.copytree(whole / kind, tmp_path / "run.zarr")
    before = times(store)
    flip_a_byte(store / "rows/1/c/1/0")
    with pytest.raises(StoreError, match=r"chunks: rows/1/c/1/0\."):
        InfluenceRun(store).check()
    worked = pieces_worked_on(monkeypatch)
    done = run(store, **FULL | KINDS[kind])
    assert worked == []
    assert results(store) == results(whole / kind)
    assert done.attrs["gradients"] == InfluenceRun(whole / kind).attrs["gradients"] + 6
    written = {name for name, time in times(store).items() if time != before[name]}
    tile = {f"rows/{p}/c/1/0" for p in range(3)} | {"row_scales/c/1/0"}
    assert written - {"squared_norms/c/1/0"} == tile | {"training_loss/c/1"}  # from one pass


def test_the_scores_of_a_block_are_those_of_its_piece_alone(tmp_path, whole, monkeypatch):
    store = shutil.copytree(whole / "by block", tmp_path / "run.zarr")
    flip_a_byte(store / "scores/c/1/2/3")  # of the third block, which is the second piece
    worked = pieces_worked_on(monkeypatch)
    done = run(store, **FULL | KINDS["by block"])
    (group,) = (q for q in range(len(done.plan.groups)) if 1 in done.plan.tiles_of(q))
    assert worked == [tasks.PieceWork(1, group, False)]  # self-influences are there
    assert results(store) == results(whole / "by block")
    queries = done.plan.group(group)
    more = queries.stop - queries.start
    before = InfluenceRun(whole / "by block").attrs["gradients"]
    assert done.attrs["gradients"] == before + more
