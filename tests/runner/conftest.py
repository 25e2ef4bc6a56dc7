"""Runs that nothing stopped, their scores by the oracle, and places for others."""

import tempfile

import dask
import pytest
from distributed import LocalCluster
from zarr.storage import MemoryStore

import small_runs
import sums_of_runs
from stopped_run import TIGHT, run
from undisturbed import OTHER, SETTINGS


@pytest.fixture(scope="session")
def truth():
    return small_runs.oracle()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The stores of runs that nothing stopped, by how rows are kept; with little memory."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for rows in TIGHT:
        run(folder / rows, rows=rows, memory=TIGHT[rows])
    return {rows: folder / rows for rows in TIGHT}


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """The store of a run that nothing stopped, as `run` makes it without settings."""
    store = tmp_path_factory.mktemp("plain") / "run.zarr"
    run(store)
    return store


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Stores to be copied and damaged."""
    folder = tmp_path_factory.mktemp("sound")
    for kind, settings in SETTINGS.items():
        run(folder / kind, **settings)
    return folder  # without self-influences, which would hide that rows are damaged


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    store = tmp_path_factory.mktemp("other") / "run.zarr"
    run(store, **OTHER)
    return store


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Three runs with self-influences, that are never changed."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        sums_of_runs.run(folder / f"{seed}.zarr", seed, self_influence=True) for seed in range(3)
    ]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of this test alone, in its processes too."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(scope="session")
def lossy_cluster(fork_server):
    """Of two workers that may be killed: it does not forget one that is started again."""
    settings = {"deploy.lost-worker-timeout": "1h", "worker.multiprocessing-method": "forkserver"}
    with (
        dask.config.set({f"distributed.{name}": value for name, value in settings.items()}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        yield cluster
