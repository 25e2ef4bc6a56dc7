"""Runs that are killed or interrupted, and go on to the same bits."""

import random
import signal

import pytest
import zarr

import stopped_run
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import TIGHT, N, chunks, run
from undisturbed import assert_same, count_gradients, gradients

pytestmark = pytest.mark.usefixtures("fork_server")

KILLS = 5


@pytest.mark.parametrize("rows", TIGHT)
def test_premise_runs_have_several_groups_of_queries_and_spans(undisturbed, rows):
    plan = InfluenceRun(undisturbed[rows]).plan
    assert plan.rows == rows
    assert len(plan.groups) == 2
    assert len(plan.spans) == 4


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("rows", TIGHT)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, undisturbed, rows):
    store = tmp_path / "run.zarr"
    counts = range(1, len(chunks(undisturbed[rows])))
    moments = sorted(random.Random(f"kill {rows}").sample(counts, KILLS))
    killed, before = 0, 0
    for moment in moments:
        process = stopped_run.started(stopped_run.run_slowly, store, rows)
        stopped_run.wait_for(lambda at=moment: len(chunks(store)) >= at, process)
        code = stopped_run.killed(process)
        complete = InfluenceRun(store).is_complete
        killed += code == -signal.SIGKILL and not complete
        assert before <= len(chunks(store))  # nothing that was done is lost
        before = len(chunks(store))
    assert killed >= KILLS - 2
    run(store, rows=rows, memory=TIGHT[rows])
    assert_same(store, undisturbed[rows])


# The group's own file is written when it is made, and three times at the end.
WRITTEN = [("zarr.json", count) for count in (1, 2, 3, 4)] + [
    ("block/zarr.json", 1),
    ("work/vectors/0/c/0/2/0", 1),
    ("scores/c/1/2", 1),
]


@pytest.mark.parametrize(("key", "count"), WRITTEN)
def test_a_run_that_is_killed_while_it_writes_a_file_goes_on(tmp_path, plain, key, count):
    store = tmp_path / "run.zarr"
    function = stopped_run.run_killed_in_write
    assert stopped_run.ended(function, store, key, count, {}) == -signal.SIGKILL
    assert list(store.rglob("*.partial"))  # the premise: a file that has not got its name
    run(store)
    assert_same(store, plain)
    InfluenceRun(store).check()
    assert "scores" in zarr.open_consolidated(store)
    assert not list(store.rglob("*.partial"))


# Interrupted


@pytest.mark.parametrize(
    ("rows", "share"),
    [("memory", 0.5), ("zarr", 0.3), ("zarr", 0.8), ("recompute", 0.1), ("recompute", 0.9)],
)
def test_after_ctrl_c_only_what_is_missing_is_computed(
    tmp_path, undisturbed, monkeypatch, rows, share
):
    store, total = tmp_path / "run.zarr", gradients(undisturbed[rows])
    # A forward pass takes two samples or three, and some are repeated as a check.
    interrupt = stopped_run.Interrupt(int(share * total / 2))
    with pytest.raises(KeyboardInterrupt):
        run(store, interrupt, rows=rows, memory=TIGHT[rows])
    done = gradients(store)
    assert 0 <= done < total
    counted = count_gradients(monkeypatch)
    run(store, rows=rows, memory=TIGHT[rows])
    assert_same(store, undisturbed[rows])
    assert sum(counted) == gradients(store) - done
    # Rows in memory are gone, and each is computed again at most once.
    assert gradients(store) <= total + (N if rows == "memory" else 0)


def test_ctrl_c_just_before_the_end_leaves_nothing_out(tmp_path, plain, monkeypatch):
    """Readers that open the group whole need the metadata that are written last."""

    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr, "consolidate_metadata", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.zarr")
    monkeypatch.undo()
    run(tmp_path / "run.zarr")
    assert_same(tmp_path / "run.zarr", plain)
    assert "scores" in zarr.open_consolidated(tmp_path / "run.zarr")
