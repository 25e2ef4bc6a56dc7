"""Processes of Dask and joblib that die, or that a run cannot use."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import dask
import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster
from zarr.storage import MemoryStore

import stopped_run
from pydvl_datainf import ClusterError, ModelError, PlanError, StoreError
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import TIGHT, TIMEOUT, chunks, run, with_value
from undisturbed import assert_same

pytestmark = pytest.mark.usefixtures("fork_server")


@pytest.fixture(scope="module")
def client(lossy_cluster):
    with Client(lossy_cluster) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["zarr", "recompute"])
def test_a_run_outlives_a_dask_worker(tmp_path, client, undisturbed, rows):
    store = tmp_path / "run.zarr"
    client.wait_for_workers(2, timeout=TIMEOUT)
    pids = client.run(os.getpid)
    enough = len(chunks(undisturbed[rows])) // 2

    def kill():
        stopped_run.wait_for(lambda: len(chunks(store)) >= enough)
        os.kill(min(pids.values()), signal.SIGKILL)
        return InfluenceRun(store).is_complete

    with ThreadPoolExecutor(1) as pool:
        was_complete = pool.submit(kill)
        run(store, stopped_run.Pause(0.02), client=client, rows=rows, memory=TIGHT[rows])
    assert not was_complete.result()
    client.wait_for_workers(2, timeout=TIMEOUT)
    assert min(pids.values()) not in client.run(os.getpid).values()
    assert_same(store, undisturbed[rows])


def test_dask_workers_name_the_sample_whose_loss_is_no_number(tmp_path, client):
    client.wait_for_workers(2, timeout=TIMEOUT)
    with pytest.raises(ModelError, match=r"Position 17 of the training data \(id 17\)"):
        run(tmp_path / "run.zarr", client=client, **with_value("train", 17, np.nan))


def test_workers_do_not_see_a_store_in_memory(client):
    for settings in ({"client": client}, {"n_jobs": 2}):
        with pytest.raises(StoreError, match="in this process's memory"):
            run(MemoryStore(), **settings)


def in_process_cluster(workers, threads):
    return LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=":0"
    )


def test_workers_with_several_threads_are_refused(tmp_path):
    with (
        in_process_cluster(1, 2) as cluster,
        Client(cluster) as client,
        pytest.raises(ClusterError, match=r"more than one thread.*--nthreads 1"),
    ):
        run(tmp_path / "run.zarr", client=client)
    assert not (tmp_path / "run.zarr").exists()


def test_a_cluster_without_workers_and_a_closed_client_are_refused(tmp_path):
    with in_process_cluster(0, 1) as cluster:
        with (
            Client(cluster) as client,
            pytest.raises(ClusterError, match=r"no workers.*dask worker ADDRESS"),
        ):
            run(tmp_path / "run.zarr", client=client)
        with pytest.raises(ClusterError, match="client is closed"):
            run(tmp_path / "run.zarr", client=client)
    assert not (tmp_path / "run.zarr").exists()


def test_an_address_where_nobody_listens_is_refused(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"),
    ):
        run(tmp_path / "run.zarr", client="tcp://127.0.0.1:9")
    assert not (tmp_path / "run.zarr").exists()


WITHOUT_THE_PACKAGE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pydvl_datainf":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def cluster_without_the_package(tmp_path):
    """The address of a scheduler with one worker, from the command line."""
    preload = tmp_path / "missing.py"
    preload.write_text(WITHOUT_THE_PACKAGE)
    options = ["--preload", str(preload)]
    with stopped_run.cluster_from_the_command_line(tmp_path, options) as address:
        yield address


@pytest.mark.slow
def test_workers_without_the_package_are_refused(tmp_path, cluster_without_the_package):
    with pytest.raises(ClusterError, match=r"has pydvl-datainf none.*Install the same version"):
        run(tmp_path / "run.zarr", client=cluster_without_the_package)
    assert not (tmp_path / "run.zarr").exists()


def test_threads_of_joblib_are_refused(tmp_path):
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(PlanError, match=r"runs threads.*loky"),
    ):
        run(tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.slow
def test_a_dead_process_of_joblib_is_named_and_the_run_goes_on(tmp_path, plain):
    store = tmp_path / "run.zarr"
    enough = len(chunks(plain)) // 3
    deadly = stopped_run.Deadly(os.getpid(), store, enough)
    with pytest.raises(ClusterError, match=r"worker process died.*call run_influences again"):
        run(store, deadly, n_jobs=2)
    assert len(chunks(store)) >= enough
    assert not InfluenceRun(store).is_complete
    run(store, deadly)
    assert_same(store, plain)
