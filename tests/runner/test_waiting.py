"""Clusters of which a part is gone or stands still: what is said, and when it is given up."""

import os
import signal
import time
from threading import Timer

import dask
import pytest
from distributed import Client, LocalCluster

import stopped_run
from pydvl_datainf import ClusterError
from pydvl_datainf.runner import waiting
from pydvl_datainf.runner.executors import Dask
from stopped_run import TIMEOUT


@pytest.fixture(scope="module")
def cluster(fork_server):
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    cluster.scale(1)
    with Client(cluster) as client:
        client.wait_for_workers(1, timeout=TIMEOUT)
        yield client


@pytest.fixture
def worker(client):
    """The process of the only worker; it goes on in the end."""
    (pid,) = client.run(os.getpid).values()
    yield pid
    os.kill(pid, signal.SIGCONT)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    times = {"SAY_AFTER": 1.0, "GIVE_UP_AFTER": 2.0, "SILENT_AFTER": 0.9, "ANSWER_WITHIN": 0.5}
    for name, seconds in times.items():
        monkeypatch.setattr(waiting, name, seconds)


def results(executor):
    return list(executor.map(negative, range(3), [], "work"))


def negative(number):
    time.sleep(0.1)
    return -number


@pytest.fixture
def executor(client):
    """With a function that is sent by value."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(__import__(__name__))
    executor = Dask(client, progress=False)
    yield executor
    executor.close()
    cloudpickle.unregister_pickle_by_value(__import__(__name__))


def test_premise_a_cluster_that_works_long_is_waited_for(executor):
    assert list(executor.map(time.sleep, [3.0], [], "work")) == [None]


def test_a_worker_that_stands_still_is_named_and_given_up(executor, worker):
    os.kill(worker, signal.SIGSTOP)
    name = r"all workers are silent \(tcp://127.0.0.1:\d+\), and 3 tasks are waiting"
    with (
        pytest.warns(RuntimeWarning, match=rf"{name}\. Waiting for another \d seconds"),
        pytest.raises(ClusterError, match=rf"{name}\. .*call run_influences again"),
    ):
        results(executor)
    os.kill(worker, signal.SIGCONT)
    assert sorted(results(executor)) == [-2, -1, 0]


def test_a_worker_that_stood_still_for_a_while_is_waited_for(executor, worker, monkeypatch):
    monkeypatch.setattr(waiting, "GIVE_UP_AFTER", 10.0 * TIMEOUT)
    said = []

    def wake(message, *_, **__):
        said.append(message)
        os.kill(worker, signal.SIGCONT)

    monkeypatch.setattr(waiting, "warn", wake)
    os.kill(worker, signal.SIGSTOP)
    assert sorted(results(executor)) == [-2, -1, 0]
    assert len(said) == 1


def test_a_cluster_that_loses_all_workers_is_given_up(cluster, executor):
    cluster.scale(0)
    stopped_run.wait_for(lambda: not cluster.scheduler_info["workers"])
    name = "the cluster has no workers, and 3 tasks are waiting"
    with pytest.warns(RuntimeWarning, match=name), pytest.raises(ClusterError, match=name):
        results(executor)


def test_a_worker_that_stands_still_at_the_start_is_named(client, worker):
    os.kill(worker, signal.SIGSTOP)
    name = r"do not answer \(tcp://127.0.0.1:\d+\)\. "
    with (
        pytest.warns(RuntimeWarning, match=rf"{name}Waiting for another 1 seconds"),
        pytest.raises(ClusterError, match=rf"{name}See to them.*call run_influences again"),
    ):
        Dask(client, progress=False)


def test_a_worker_that_is_lost_at_the_start_is_not_said_to_lack_the_package(client, monkeypatch):
    lost = {"tcp://127.0.0.1:9": OSError("in connection: refused")}
    monkeypatch.setattr(client, "run", lambda *_, **__: lost)
    with pytest.raises(ClusterError, match=r"127.0.0.1:9 was lost when .* refused"):
        Dask(client, progress=False)


@pytest.mark.slow
def test_a_scheduler_that_stands_still_or_dies_is_named(tmp_path, fork_server, monkeypatch):
    with stopped_run.cluster(tmp_path) as (address, (scheduler, _)), Client(address) as client:
        with monkeypatch.context() as patch:
            patch.setattr(waiting, "SAY_AFTER", TIMEOUT)  # the worker imports the package
            patch.setattr(waiting, "GIVE_UP_AFTER", 2 * TIMEOUT)
            executor = Dask(client, progress=False)
        stop = Timer(0.3, os.kill, [scheduler.pid, signal.SIGSTOP])
        stop.start()
        name = r"the Dask scheduler does not answer, and \d+ tasks are waiting"
        with pytest.warns(RuntimeWarning, match=name), pytest.raises(ClusterError, match=name):
            list(executor.map(time.sleep, [0.1] * 50, [], "work"))
        with pytest.raises(ClusterError, match=r"scheduler does not answer \(TimeoutError"):
            Dask(client, progress=False)
        os.kill(scheduler.pid, signal.SIGCONT)
        kill = Timer(0.3, scheduler.kill)
        kill.start()
        lost = r"(?s)dropped the work: .*lost the connection to the scheduler.*call run_influences"
        with pytest.raises(ClusterError, match=lost):
            list(executor.map(time.sleep, [0.1] * 50, [], "work"))
        executor.close()
