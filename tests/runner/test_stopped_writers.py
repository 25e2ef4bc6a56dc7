"""Writers and readers of a store that changes hands, and workers that outlive their run."""

import asyncio
import os
import shutil
import signal
import threading
import uuid

import numpy as np
import pytest
from distributed import Client
from zarr.storage import LocalStore, MemoryStore

import stopped_run
from pydvl_datainf import StoreError, compute_self_influence, run_influences
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import Stored
from pydvl_datainf.runner.executors import Joblib
from stopped_run import TIMEOUT, build, run
from undisturbed import OTHER, assert_same

pytestmark = pytest.mark.usefixtures("fork_server", "temporary")

# The writer of a store


def in_folder(folder):
    return folder / "run.zarr"


def in_memory(folder):
    return MemoryStore()


def at_url(folder):
    return f"memory://{folder.name}-{uuid.uuid4().hex}"


PLACES = [in_folder, in_memory, at_url]
WRITES = {
    "write": lambda store: store.write("a", ..., np.ones(3)),
    "require": lambda store: store.require("b", (3,), (3,), "float64", ("x",)),
    "label": lambda store: store.label("a", {"n": 3}),
    "update": lambda store: store.update({"gradients": 3}),
    "delete": lambda store: store.delete("a"),
    "finish": lambda store: store.finish([]),
}


def made(place, writer):
    store = Store(place)
    store.create({"writer": writer})
    store.require("a", (3,), (3,), "float64", ("x",))
    return store


def contents(store):
    fresh = Stored(store.location)
    return fresh.attributes, fresh.names(), fresh.array("a").attrs.asdict(), fresh.present("a")


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("place", PLACES)
def test_who_is_no_longer_the_writer_of_a_store_writes_nothing(tmp_path, place, name):
    first = made(place(tmp_path), "first")
    worker = Store(first.location, writer="first")
    worker.array("a")  # opened before the store changes hands
    worker.write("a", ..., np.zeros(3))
    second = made(first.location, "second")
    for late in (first, worker):
        before = contents(second)
        with pytest.raises(StoreError, match="no longer the store of this run: another call"):
            WRITES[name](late)
        assert contents(second) == before
    WRITES[name](second)  # the control


@pytest.mark.parametrize("place", PLACES)
def test_who_goes_on_with_a_run_is_its_only_writer(tmp_path, place):
    first = made(place(tmp_path), "first")
    second = Store(first.location)
    second.take_over("second")
    with pytest.raises(StoreError, match="no longer the store of this run"):
        first.write("a", ..., np.zeros(3))
    second.write("a", ..., np.ones(3))
    worker = Store(first.location, writer="second")
    worker.write("a", ..., np.full(3, 2.0))
    np.testing.assert_array_equal(Store(first.location).read("a"), 2.0)


def test_who_writes_when_the_store_is_gone_is_told(tmp_path):
    first = made(tmp_path / "run.zarr", "first")
    shutil.rmtree(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match="no longer the store of this run"):
        first.write("a", ..., np.zeros(3))
    assert not (tmp_path / "run.zarr").exists()


class Halting(LocalStore):
    """Says when it comes to a chunk, and then takes its time."""

    there = threading.Event()

    async def set(self, key, value):
        if "/c/" in key:
            self.there.set()
            await asyncio.sleep(0.3)
        await super().set(key, value)


@pytest.mark.parametrize("change", ["create", "take_over"])
def test_nobody_gets_in_between_the_check_and_the_writing(tmp_path, change):
    """The old writer has looked, and not yet written, when the store changes hands."""
    Halting.there.clear()
    path = tmp_path / "run.zarr"
    made(path, "first")
    second = Store(path)
    slow = Store(Halting(path), writer="first")
    changes = {
        "create": lambda: second.create({"writer": "second"}),
        "take_over": lambda: second.take_over("second"),
    }
    writer = threading.Thread(target=slow.write, args=("a", ..., np.zeros(3)))
    writer.start()
    assert Halting.there.wait(TIMEOUT)
    changes[change]()
    found = (path / "a/c/0").exists()  # written before, into the run that is gone on with
    writer.join(TIMEOUT)
    assert (path / "a/c/0").exists() == found == (change == "take_over")


def test_consolidated_metadata_outlive_a_change_of_the_writer(tmp_path):
    store = made(tmp_path / "run.zarr", "first")
    store.finish([])
    before = (tmp_path / "run.zarr/zarr.json").read_text()
    assert "consolidated_metadata" in before
    store.take_over("second")
    assert (tmp_path / "run.zarr/zarr.json").read_text() == before.replace('"first"', '"second"')


def test_chunks_of_intermediate_results_that_are_gone_do_not_pass_for_those_of_the_next(tmp_path):
    store = made(tmp_path / "run.zarr", "first")
    store.require("work/a", (3,), (3,), "float64", None)
    store.write("work/a", ..., np.ones(3))
    (tmp_path / "run.zarr/work/a/zarr.json").unlink()  # by a process that was killed at it
    store = Store(tmp_path / "run.zarr", writer="first")
    store.require("work/a", (3,), (3,), "float64", None)
    assert store.present("work/a") == set()


def test_a_call_that_changes_nothing_leaves_a_run_as_it_is(tmp_path, plain):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    run(store)
    assert (store / "zarr.json").read_bytes() == (plain / "zarr.json").read_bytes()


def test_each_call_that_works_on_a_run_is_a_writer_of_its_own(tmp_path, plain):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    (store / "scores/c/0/0").unlink()
    run(store)
    assert_same(store, plain)
    first, second = (InfluenceRun(s).attrs["writer"] for s in (plain, store))
    assert first != second


def test_self_influences_are_not_kept_in_a_run_that_has_taken_the_place(tmp_path):
    store = tmp_path / "run.zarr"
    done = run(store, rows="zarr")
    run(store, rows="zarr", overwrite=True)  # the same, so that it may be read
    compute_self_influence(done, progress=False)
    assert (store / "self_influence").exists()
    run(store, rows="zarr", overwrite=True, **OTHER)
    with pytest.raises(StoreError, match="was replaced"):
        compute_self_influence(done, progress=False)
    assert not (store / "self_influence").exists()
    compute_self_influence(InfluenceRun(store), progress=False)  # the control
    assert (store / "self_influence").exists()


# Readers of a store that changes hands


def test_a_query_whose_rows_are_replaced_meanwhile_is_stopped(tmp_path):
    rows = {"rows": "zarr"}
    first, second = (
        run(tmp_path / "run.zarr", **rows),
        run(tmp_path / "second.zarr", **rows, **OTHER),
    )
    replace = stopped_run.Replace(tmp_path / "run.zarr", tmp_path / "second.zarr")
    test = stopped_run.loader(stopped_run.samples(4, 3), 4)
    with pytest.raises(StoreError, match=r"run\.zarr.* was replaced meanwhile"):
        run_influences(build(replace), test, first, tmp_path / "query.zarr", progress=False)
    assert InfluenceRun(tmp_path / "run.zarr").attrs == second.attrs  # the premise


def test_a_query_of_a_query_whose_rows_were_replaced_is_refused(tmp_path):
    test = stopped_run.loader(stopped_run.samples(4, 3), 4)
    first = run(tmp_path / "run.zarr", rows="zarr")
    query = run_influences(build(), test, first, tmp_path / "query.zarr", progress=False)
    run_influences(build(), test, query, tmp_path / "control.zarr", progress=False)
    run(tmp_path / "run.zarr", rows="zarr", overwrite=True, **OTHER)
    with pytest.raises(StoreError, match=r"holds another run now: model differ"):
        run_influences(build(), test, query, tmp_path / "again.zarr", progress=False)
    assert not (tmp_path / "again.zarr").exists()


# Workers that outlive their run


@pytest.mark.slow
def test_processes_end_with_the_run_and_what_they_leave_is_removed(tmp_path, temporary, other):
    signs, go, store = tmp_path / "signs", tmp_path / "go", tmp_path / "run.zarr"
    signs.mkdir()
    arguments = (str(temporary), store, signs, go, {"n_jobs": 2})
    first = stopped_run.started(stopped_run.run_held_in, *arguments, daemon=False)
    stopped_run.wait_for(lambda: len(list(signs.iterdir())) == 2, first)
    workers = [int(sign.name) for sign in signs.iterdir()]
    assert first.pid not in workers
    named = "[0-9a-f]" * 32 + ".shared"  # pickled: inputs and context; beside them numbers of cards
    assert len(list(temporary.glob(f"pydvl-datainf-*/{named}"))) == 2
    foreign = temporary / "pydvl-datainf-joblib-mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("the only copy")
    Joblib(2, progress=False).close()
    assert len(list(temporary.glob(f"pydvl-datainf-*/{named}"))) == 2  # the run is alive
    assert stopped_run.killed(first) == -signal.SIGKILL
    stopped_run.wait_for(lambda: not any(map(stopped_run.is_alive, workers)))
    Joblib(2, progress=False).close()
    assert [path.name for path in temporary.glob("pydvl-datainf-*")] == [foreign.name]
    run(store, overwrite=True, **OTHER)
    assert_same(store, other)
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.slow
def test_dask_workers_do_not_write_into_the_run_after_their_own(tmp_path, other):
    signs, go, store = tmp_path / "signs", tmp_path / "go", tmp_path / "run.zarr"
    signs.mkdir()
    with stopped_run.cluster(tmp_path) as (address, _):
        first = stopped_run.started(stopped_run.run_held, store, signs, go, {"client": address})
        stopped_run.wait_for(lambda: list(signs.iterdir()), first)
        assert stopped_run.killed(first) == -signal.SIGKILL
        run(store, overwrite=True, **OTHER)
        assert_same(store, other)
        go.touch()
        with Client(address) as client:  # the worker has one thread
            assert client.submit(os.getpid).result(TIMEOUT) == int(next(signs.iterdir()).name)
        assert_same(store, other)
