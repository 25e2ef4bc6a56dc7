"""Values from stores, from processes, and from runs."""

import os

import joblib
import numpy as np
import pytest
from distributed import Client
from pydvl.utils.status import Status
from pydvl.valuation.dataset import Dataset
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, InfluenceRun, StoreError, run_influences
from pydvl_datainf.errors import PlanError, SourceError, StoreExistsError
from pydvl_datainf.influence import ExactInfluence
from pydvl_datainf.valuation import DataInfValuation, to_valuation_result
from small_runs import close
from valued import (
    TEST,
    TRAIN,
    M,
    N,
    build,
    group_scores,
    grouped,
    network,
    samples,
    tensors,
    values_of,
)

# Stores and processes


@pytest.mark.parametrize("make", [grouped, lambda: Dataset(*TRAIN)], ids=["groups", "samples"])
@pytest.mark.parametrize("fitted", [False, True])
def test_a_store_gives_the_same_values_and_goes_on(tmp_path, scores, make, fitted):
    influence = build().fit([tensors(samples(N, 7))]) if fitted else build()
    valuation = DataInfValuation(influence, TEST, store=tmp_path / "run.zarr", batch_size=4)
    plain = DataInfValuation(build(), TEST).fit(make()).result
    result = valuation.fit(make()).result
    close(result.values, plain.values)
    close(result.variances, plain.variances)
    run = InfluenceRun(tmp_path / "run.zarr")
    order = np.argsort(run.train_ids)
    close(run.scores[...][:, order], scores)
    gradients = run.attrs["gradients"]
    assert valuation.fit(make()).result == result
    assert InfluenceRun(tmp_path / "run.zarr").attrs["gradients"] == gradients > 0
    with pytest.raises(StoreExistsError, match="training data"):
        valuation.fit(Dataset(*samples(N, 8)))


def test_the_exact_inverse_with_a_store(tmp_path):
    influence = ExactInfluence(network(), F.cross_entropy)
    plain = values_of(influence=influence)
    close(values_of(influence=influence, store=tmp_path / "run.zarr").values, plain.values)


class Noted:
    """A loss that leaves the number of the process that computes it."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, outputs, y):
        (self.folder / str(os.getpid())).touch()
        return F.cross_entropy(outputs, y)


def processes(folder):
    return {int(path.name) for path in folder.iterdir()}


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("config", [{}, {"n_jobs": 2}], ids=["surrounding", "own"])
def test_processes_of_joblib_give_the_same_values(tmp_path, scores, config):
    influence = DataInfInfluence(network(), Noted(tmp_path))
    with joblib.parallel_config(n_jobs=1 if config else 2):
        result = values_of(influence=influence, **config)
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))
    assert processes(tmp_path)
    assert os.getpid() not in processes(tmp_path)


def test_threads_of_joblib_are_refused():
    with (
        joblib.parallel_config(backend="threading", n_jobs=2),
        pytest.raises(PlanError, match=r"runs threads.*loky"),
    ):
        values_of()


def test_a_dask_client(tmp_path, scores):
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with Client(processes=False, **settings) as client:
        result = values_of(client=client, store=tmp_path / "run.zarr")
    close(result.values, scores.mean(0))


# Runs


def run(store, **settings):
    settings = {"progress": False, "tile": (2, 4), **settings}
    return run_influences(build(), tensors(TEST), tensors(TRAIN), store, **settings)


@pytest.mark.parametrize("by_block", [False, True])
def test_a_run_has_values(tmp_path, scores, by_block):
    result = to_valuation_result(run(tmp_path / "run.zarr", by_block=by_block))
    close(result.values, scores.mean(0))
    close(result.variances, scores.var(0, ddof=1))
    np.testing.assert_array_equal(result.counts, [M] * N)
    np.testing.assert_array_equal(result.indices, np.arange(N))
    assert result.names.tolist() == [str(i) for i in range(N)]
    assert (result.algorithm, result.status) == ("DataInf", Status.Converged)


def test_a_run_with_the_groups_and_names_of_its_data(tmp_path, scores):
    """Columns of the run are in the order of x, samples of the data set in that of groups."""
    assert grouped().data_indices().tolist() != list(range(N))
    done = run(tmp_path / "run.zarr")
    result = to_valuation_result(done, grouped(group_names=["a", "b", "c"]))
    close(result.values, group_scores(scores).mean(0))
    close(result.variances, group_scores(scores).var(0, ddof=1))
    assert result.names.tolist() == ["a", "b", "c"]
    named = to_valuation_result(done, Dataset(*TRAIN, data_names=list("abcdefghijklm")))
    assert named.names.tolist() == list("abcdefghijklm")


def test_a_run_with_the_top_only_has_no_variances(tmp_path, scores):
    result = to_valuation_result(run(tmp_path / "run.zarr", top_k=3))
    close(result.values, scores.mean(0))
    assert np.isnan(result.variances).all()


def test_a_run_of_named_samples(tmp_path, scores):
    names = [f"sample {i}" for i in range(N)]
    done = run(tmp_path / "run.zarr", ids={"train": names})
    result = to_valuation_result(done)
    assert result.names.tolist() == names
    close(result.values, scores.mean(0))
    with pytest.raises(SourceError, match="ids such as 'sample 0'"):
        to_valuation_result(done, Dataset(*TRAIN))


def test_a_run_of_groups_of_test_samples(tmp_path, scores):
    result = to_valuation_result(run(tmp_path / "run.zarr", query_groups=[0, 0, 1, 1, 1]))
    means = np.stack([scores[:2].mean(0), scores[2:].mean(0)])
    close(result.values, means.mean(0))
    close(result.variances, means.var(0, ddof=1))
    np.testing.assert_array_equal(result.counts, [2] * N)


def test_a_run_and_data_of_another_length(tmp_path):
    with pytest.raises(SourceError, match=r"The run has 13 .* and the data 4 "):
        to_valuation_result(run(tmp_path / "run.zarr"), Dataset(*samples(4, 1)))


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"\0" * 50)])
def test_a_damaged_run_is_refused(tmp_path, damage):
    done = run(tmp_path / "run.zarr")
    damage(sorted((tmp_path / "run.zarr" / "scores" / "c").rglob("*"))[-1])
    with pytest.raises(StoreError, match="scores"):
        to_valuation_result(done)
