"""run_influences on Dask and joblib: the same scores, and what other processes cannot do."""

import os
import time
from dataclasses import replace

import dask.array as da
import joblib
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import context as loky

import stopped_run
from pydvl_datainf import ModelError, PlanError
from pydvl_datainf.runner import executors, tasks
from small_runs import ROWS, M, build, close, network, run, samples, train_loader


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Scores of the in-process executor, for rows computed exactly and for stored ones."""
    folder = tmp_path_factory.mktemp("reference")
    return {rows: run(folder / rows, rows=rows).scores[...] for rows in ROWS}


def assert_workers_hold_nothing(client):
    """The scheduler tells the workers in its own time."""
    assert set(client.run(lambda: len(executors.cluster._here)).values()) == {0}
    deadline = time.monotonic() + 30
    while any(client.run(lambda dask_worker: len(dask_worker.data)).values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("rows", ["zarr", "recompute"])
def test_dask_agrees(tmp_path, client, reference, truth, rows):
    done = run(tmp_path / "run.zarr", client=client, rows=rows)
    close(done.scores[...], reference[rows])
    close(done.training_loss(), truth["losses"])
    assert not client.futures
    assert_workers_hold_nothing(client)


def test_dask_with_a_builder_loader_workers_and_dask_arrays(tmp_path, client, reference, truth):
    test = tuple(da.from_array(t.numpy(), chunks=(3, *t.shape[1:])) for t in samples(M, 2))
    train = train_loader(num_workers=2)
    done = run(tmp_path / "run.zarr", build, test, train, client=client, rows="recompute")
    close(done.scores[...], reference["recompute"])
    close(done.training_loss(), truth["losses"])


def test_dask_top_groups_and_self_influences(tmp_path, client, truth):
    done = run(tmp_path / "top.zarr", client=client, top_k=3, tile=(2, 6), self_influence=True)
    np.testing.assert_array_equal(done.top(3)[0], np.argsort(-truth["scores"].sum(1))[:, :3])
    close(done.self_influence(), truth["selves"], 1e-3)
    grouped = run(tmp_path / "groups.zarr", client=client, query_groups=[0] * M)
    close(grouped.scores[...], truth["scores"].sum(1).mean(0, keepdims=True), 1e-3)


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("rows", ["zarr", "recompute"])
def test_joblib_agrees(tmp_path, reference, truth, rows):
    done = run(tmp_path / "run.zarr", n_jobs=2, rows=rows)
    close(done.scores[...], reference[rows])
    close(done.training_loss(), truth["losses"])


@pytest.fixture
def unforked():
    """As joblib starts its processes by itself: each does the imports."""
    usual = loky.get_start_method()
    get_reusable_executor().shutdown()
    loky.set_start_method("loky", force=True)
    yield
    get_reusable_executor().shutdown()
    loky.set_start_method(usual, force=True)


def test_surrounding_joblib_config_counts(tmp_path, reference, unforked):
    here = os.getpid()
    seen = tmp_path / "pids"
    seen.mkdir()
    with joblib.parallel_config(n_jobs=2):
        done = run(tmp_path / "run.zarr", Recording(seen), rows="recompute")
    close(done.scores[...], reference["recompute"])
    assert str(here) not in {path.name for path in seen.iterdir()}


class Recording:
    """Builds the model and leaves the number of its process."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        (self.folder / str(os.getpid())).touch()
        return build()


def test_a_builder_is_called_once_in_each_process(tmp_path, client, reference):
    folder = tmp_path / "calls"
    folder.mkdir()
    done = run(tmp_path / "run.zarr", Once(folder), client=client, rows="recompute")
    close(done.scores[...], reference["recompute"])
    assert 1 <= len(list(folder.iterdir())) <= 2


class Once(Recording):
    def __call__(self):
        (self.folder / str(os.getpid())).touch(exist_ok=False)
        return build()


def test_a_builder_that_builds_something_else_is_refused(tmp_path):
    with pytest.raises(ModelError, match="builder returned a Sequential"):
        run(tmp_path / "run.zarr", network)


def test_a_process_that_builds_another_model_is_refused(tmp_path, monkeypatch):
    """The model that was described, as if by another process, has another bias."""
    describe = tasks.describe

    def other(_, inputs):
        found = describe(_, inputs)
        return replace(found, model={**found.model, "0.bias": 0})

    monkeypatch.setattr(tasks, "describe", other)
    with pytest.raises(ModelError, match=r"0\.bias.*must build the same model every time"):
        run(tmp_path / "run.zarr", build)


def test_a_cluster_from_the_command_line(tmp_path, reference):
    with stopped_run.cluster_from_the_command_line(tmp_path) as address:
        done = run(tmp_path / "run.zarr", client=address, rows="recompute")
    close(done.scores[...], reference["recompute"])


def test_memory_rows_stay_in_this_process(tmp_path, client):
    with pytest.raises(PlanError, match='Use rows="zarr"'):
        run(tmp_path / "run.zarr", n_jobs=2, rows="memory")
    with pytest.raises(PlanError, match='Use rows="zarr"'):
        run(tmp_path / "run.zarr", client=client, rows="memory")


def test_one_executor_at_a_time(tmp_path, client):
    with pytest.raises(PlanError, match="not both"):
        run(tmp_path / "run.zarr", n_jobs=2, client=client)
