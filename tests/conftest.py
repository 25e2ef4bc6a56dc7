"""Settings for all tests."""

import gc
import os
import sys
import threading

import pytest
import torch
from hypothesis import settings

# These are no test files, but their assertions are to tell as much.
pytest.register_assert_rewrite(
    "commands",
    "method_contract",
    "objective_runs",
    "report_in_browser",
    "store_contract",
    "tuned_again",
    "undisturbed",
)

# There are several of this name, which the collection of doctests takes for one module.
collect_ignore_glob = ["*conftest.py"]

# One thread: with several, small matrices cost more in waiting than in arithmetic.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("ci")


FOREIGN_THREADS = "zarr_io", "asyncio_", "IO loop"


@pytest.hookimpl(trylast=True)
def pytest_sessionstart():
    """Leaves threads in which Zarr and Dask read and write out of the measurement of coverage.

    Tracing each of their lines takes as long as the work of a test itself.
    """
    trace = threading.gettrace()

    def trace_others(frame, event, argument):
        if threading.current_thread().name.startswith(FOREIGN_THREADS):
            return sys.settrace(None)
        return trace(frame, event, argument)

    if trace is not None:
        threading.settrace(trace_others)


def pytest_collection_finish():
    """Spares each collection of garbage the many objects of modules and tests, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """Folders of tiny tuned models."""
    from tuned import save_tuned

    return save_tuned(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def fork_server():
    """Processes of the tests, of joblib and of Dask come from one that has the imports done."""
    from stopped_run import start_fork_server

    start_fork_server()


@pytest.fixture(scope="session")
def cluster_of_two(fork_server):
    """A Dask cluster of two processes."""
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster_of_two):
    """Of two Dask workers in processes of their own."""
    from distributed import Client

    with Client(cluster_of_two) as client:
        yield client
