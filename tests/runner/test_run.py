"""run_influences against the dense oracle, however rows are kept, work is cut and done."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import dask.array as da
import joblib
import numpy as np
import pytest
import torch
import zarr
from distributed import Client, LocalCluster
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dense
from pydvl_datainf import (
    DataInfInfluence,
    ModelError,
    PlanError,
    SequenceClassification,
    StoreError,
    StoreExistsError,
    compute_self_influence,
    run_influences,
)
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner import executors, tasks

N, M = 23, 7
ROWS = ["memory", "zarr", "recompute"]
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def samples(length, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (length,), generator=generator)


def loader(length, seed, batch_size, **settings):
    return DataLoader(TensorDataset(*samples(length, seed)), batch_size, **settings)


def train_loader(**settings):
    return loader(N, 1, 5, **settings)


def query_loader():
    return loader(M, 2, 3)


def build():
    return DataInfInfluence(network(), F.cross_entropy)


def run(store, influence=None, test=None, train=None, **settings):
    settings = {"progress": False, **settings}
    influence, test, train = influence or build(), test or query_loader(), train or train_loader()
    return run_influences(influence, test, train, store, **settings)


@pytest.fixture(scope="module")
def truth():
    """Scores (M, blocks, N), self-influences (N,), losses, λ and squared norms, by the oracle."""
    model = network()
    names = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
    test, train = (
        {b: dense.gradients(model, F.cross_entropy, samples(*side), p) for b, p in names.items()}
        for side in ((M, 2), (N, 1))
    )
    damping = {block: dense.automatic_damping(rows) for block, rows in train.items()}
    inverse = {block: dense.datainf_matrix(g, damping[block]) for block, g in train.items()}
    scores = torch.stack([test[b] @ inverse[b] @ train[b].T for b in names], 1)
    selves = sum((train[b] @ inverse[b] * train[b]).sum(1) for b in names)
    norms = torch.stack([(train[b] ** 2).sum(1) for b in names], 1)
    losses = torch.stack(dense.sample_losses(model, F.cross_entropy, samples(N, 1))).detach()
    found = {"scores": scores, "selves": selves, "norms": norms, "losses": losses}
    return {name: value.numpy() for name, value in found.items()} | {"damping": damping}


def close(actual, expected, relative=1e-9):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=relative * scale)


# Agreement with the formula


@pytest.mark.parametrize("rows", ["memory", "recompute"])
@pytest.mark.parametrize(
    "cut",
    [{}, {"tile": (3, 4)}, {"tile": (1, 1)}, {"tile": (50, 50)}, {"memory": 4000}],
    ids=["default", "uneven", "single", "whole", "little memory"],
)
def test_scores_are_those_of_the_formula(tmp_path, truth, rows, cut):
    cut = {**cut, "memory": 12000} if rows == "memory" and "memory" in cut else cut
    done = run(tmp_path / "run.zarr", rows=rows, self_influence=True, **cut)
    assert done.plan.rows == rows
    close(done.scores[...], truth["scores"].sum(1))
    close(done.mean_influence(), truth["scores"].sum(1).mean(0))
    close(done.self_influence(), truth["selves"])
    close(done.relative_influence(), done.mean_influence() / np.sqrt(truth["selves"]))
    close(list(done.damping.values()), list(truth["damping"].values()))
    close(zarr.open_group(tmp_path / "run.zarr")["squared_norms"][...], truth["norms"])
    done.check()


def test_little_memory_means_several_groups_of_queries(tmp_path):
    """The premise of one of the cases above."""
    assert len(run(tmp_path / "run.zarr", rows="recompute", memory=4000).plan.groups) > 1


def test_rows_on_disk_change_scores_by_a_thousandth_of_their_root_mean_square(tmp_path, truth):
    done = run(tmp_path / "run.zarr", rows="zarr")
    compute_self_influence(done, progress=False)
    expected = truth["scores"].sum(1)
    rms = np.sqrt((expected**2).mean(1, keepdims=True))
    error = np.abs(done.scores[...] - expected) / rms
    assert 0 < error.max() < 1e-3
    close(done.self_influence(), truth["selves"], 1e-3)
    assert "self_influence" in zarr.open_group(tmp_path / "run.zarr")


def test_scores_by_block(tmp_path, truth):
    done = run(tmp_path / "run.zarr", by_block=True, tile=(2, 6))
    assert done.scores.shape == (M, 2, N)
    close(done.scores[...], truth["scores"])
    ids, scores = done.top(3, test=4)
    close(scores, np.sort(truth["scores"].sum(1)[4])[:-4:-1])
    np.testing.assert_array_equal(ids, np.argsort(-truth["scores"].sum(1)[4])[:3])


@pytest.mark.parametrize("most", ["helpful", "harmful"])
@pytest.mark.parametrize("top_k", [None, 4, 100])
def test_the_top_is_that_of_all_scores(tmp_path, truth, most, top_k):
    done = run(tmp_path / "run.zarr", top_k=top_k, tile=(3, 6))
    assert (done.scores is None) == (top_k is not None)
    expected = truth["scores"].sum(1) * (-1 if most == "helpful" else 1)
    order = np.argsort(expected, axis=1)[:, :4]
    ids, scores = done.top(4, most=most)
    np.testing.assert_array_equal(ids, order)
    close(scores, np.take_along_axis(truth["scores"].sum(1), order, axis=1))
    close(done.mean_influence(), truth["scores"].sum(1).mean(0))


def test_the_top_holds_no_more_than_was_kept_and_says_so(tmp_path):
    done = run(tmp_path / "run.zarr", top_k=2)
    with pytest.raises(ValueError, match="kept the top 2"):
        done.top(3)
    with pytest.raises(ValueError, match="most must be one of"):
        done.top(1, most="useful")
    with pytest.raises(KeyError, match="No test sample has the id 99"):
        done.top(1, test=99)


def test_equal_scores_come_in_the_order_of_the_samples(tmp_path):
    x, y = (side[:1].repeat(6, *[1] * (side.ndim - 1)) for side in samples(1, 3))
    same = DataLoader(TensorDataset(x, y), 2)
    for top_k in (None, 3):
        done = run(tmp_path / f"{top_k}.zarr", train=same, top_k=top_k, tile=(7, 2))
        assert done.top(3)[0].tolist() == [[0, 1, 2]] * M
        assert done.top(3, most="harmful")[0].tolist() == [[0, 1, 2]] * M


@pytest.mark.parametrize("rows", ROWS)
def test_groups_have_the_mean_influence_of_their_samples(tmp_path, truth, rows):
    labels = ["b", "a", "b", "c", "a", "b", "b"]
    done = run(tmp_path / "run.zarr", query_groups=labels, rows=rows, tile=(2, 6))
    assert done.test_ids.tolist() == ["b", "a", "c"]
    members = [[i for i, label in enumerate(labels) if label == group] for group in "bac"]
    expected = np.stack([truth["scores"].sum(1)[rows].mean(0) for rows in members])
    close(done.scores[...], expected, 1e-3 if rows == "zarr" else 1e-9)
    assert done.attrs["gradients"] == M + N * (3 if rows == "recompute" else 1)


def test_groups_of_many_samples_are_summed_in_parts(tmp_path):
    test = loader(600, 4, 50)
    labels = np.arange(600) % 2
    done = run(tmp_path / "run.zarr", test=test, query_groups=labels)
    assert done.plan.part < 600
    each = run(tmp_path / "each.zarr", test=test).scores[...]
    close(done.scores[...], np.stack([each[labels == group].mean(0) for group in (0, 1)]))


@pytest.mark.parametrize(("n", "m"), [(1, 3), (5, 1), (3, 11)])
def test_few_samples(tmp_path, n, m):
    test, train = loader(m, 2, 4), loader(n, 1, 4)
    expected = build().fit(train).training_influences(*samples(m, 2)).numpy()
    close(run(tmp_path / "run.zarr", test=test, train=train).scores[...], expected)


@pytest.mark.parametrize("rows", ROWS)
def test_samples_without_gradient_have_no_influence(tmp_path, rows):
    model = nn.Linear(3, 4, bias=False).double()
    x, y = samples(N, 1)
    x[::4] = 0
    influence = DataInfInfluence(model, F.cross_entropy)
    train = DataLoader(TensorDataset(x, y), 5)
    done = run(tmp_path / "run.zarr", influence, train=train, rows=rows, self_influence=True)
    assert (done.scores[:, ::4] == 0).all()
    assert (done.self_influence()[::4] == 0).all()
    assert (done.relative_influence()[::4] == 0).all()
    assert (done.scores[:, 1::4] != 0).all()


def test_float32_scores_are_float32(tmp_path, truth):
    to_float = [
        DataLoader(TensorDataset(x.float(), y), 5) for x, y in (samples(M, 2), samples(N, 1))
    ]
    influence = DataInfInfluence(network().float(), F.cross_entropy)
    done = run(tmp_path / "run.zarr", influence, *to_float)
    assert done.scores.dtype == np.float32
    close(done.scores[...], truth["scores"].sum(1), 1e-5)


def test_mapping_batches(tmp_path):
    class Classifier(nn.Linear):
        def forward(self, inputs):
            return type("Output", (), {"logits": super().forward(inputs)})

    def batches(length, seed):
        x, y = samples(length, seed)
        return [
            {"inputs": x[a:b], "labels": y[a:b]} for a, b in pairwise([0, 2, 6, length])
        ]  # unequal

    influence = DataInfInfluence(Classifier(3, 4).double(), SequenceClassification())
    test, train = batches(M, 2), batches(N, 1)
    expected = influence.fit(train).training_influences(
        {k: torch.cat([b[k] for b in test]) for k in test[0]}
    )
    done = run(tmp_path / "run.zarr", influence, test, train, tile=(2, 5))
    close(done.scores[...], expected.numpy())


# Where λ comes from


def test_given_damping_and_that_of_a_fitted_model_are_used(tmp_path):
    given = {"0": 0.5, "2": 0.01}
    influence = DataInfInfluence(network(), F.cross_entropy, given)
    assert run(tmp_path / "given.zarr", influence).damping == given
    fitted = build().fit(train_loader()).with_regularization(0.25)
    done = run(tmp_path / "fitted.zarr", fitted)
    assert done.damping == {"0": 0.25, "2": 0.25}
    close(done.scores[...], fitted.training_influences(*samples(M, 2)).numpy())
    assert fitted.is_fitted


def test_a_model_that_changed_after_fit_is_refused(tmp_path):
    fitted = build().fit(train_loader())
    fitted.model[0].weight.data[0, 0] += 1
    with pytest.raises(ModelError, match="changed after fit"):
        run(tmp_path / "run.zarr", fitted)
    assert not (tmp_path / "run.zarr").exists()


# How much is computed


@pytest.mark.parametrize("tile", [None, (2, 4), (7, 23)])
@pytest.mark.parametrize(
    ("rows", "regularization", "passes"),
    [
        ("memory", "auto", 1),
        ("memory", 0.1, 1),
        ("zarr", "auto", 1),
        ("zarr", 0.1, 1),
        ("recompute", 0.1, 2),
        ("recompute", "auto", 3),
    ],
)
def test_number_of_gradients(tmp_path, monkeypatch, rows, regularization, passes, tile):
    counted = []
    original = DataInfInfluence.loss_gradients_by_block

    def count(self, x, y=None):
        counted.append(len(x))
        return original(self, x, y)

    monkeypatch.setattr(DataInfInfluence, "loss_gradients_by_block", count)
    influence = DataInfInfluence(network(), F.cross_entropy, regularization)
    done = run(tmp_path / "run.zarr", influence, rows=rows, tile=tile)
    assert len(done.plan.groups) == 1
    assert sum(counted) == passes * N + M
    assert done.attrs["gradients"] == passes * N + M


# Kinds of data


class Tokens(Dataset):
    """A map-style dataset."""

    def __init__(self, length, seed):
        self.x, self.y = samples(length, seed)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


@pytest.mark.parametrize(
    "train",
    [
        Tokens(N, 1),
        DataLoader(Tokens(N, 1), 4, num_workers=2),
        DataLoader(Tokens(N, 1), batch_sampler=[[0, 1, 2], list(range(3, N))]),
        list(train_loader()),
        samples(N, 1),
        tuple(da.from_array(t.numpy(), chunks=(6, *t.shape[1:])) for t in samples(N, 1)),
        (
            da.from_array(samples(N, 1)[0].numpy(), chunks=(9, 2)),
            da.from_array(samples(N, 1)[1].numpy(), chunks=4),
        ),
    ],
    ids=["dataset", "workers", "batch sampler", "list", "batch", "dask", "dask chunks"],
)
@pytest.mark.parametrize("rows", ["memory", "recompute"])
def test_kinds_of_data(tmp_path, truth, train, rows):
    done = run(tmp_path / "run.zarr", train=train, rows=rows)
    close(done.scores[...], truth["scores"].sum(1))


# Executors


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Scores of the in-process executor, for rows computed exactly and for stored ones."""
    folder = tmp_path_factory.mktemp("reference")
    return {rows: run(folder / rows, rows=rows).scores[...] for rows in ROWS}


def assert_workers_hold_nothing(client):
    """The scheduler tells the workers in its own time."""
    assert set(client.run(lambda: len(executors._here)).values()) == {0}
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


@pytest.mark.parametrize("rows", ["zarr", "recompute"])
def test_joblib_agrees(tmp_path, reference, truth, rows):
    done = run(tmp_path / "run.zarr", n_jobs=2, rows=rows)
    close(done.scores[...], reference[rows])
    close(done.training_loss(), truth["losses"])


def test_surrounding_joblib_config_counts(tmp_path, reference, monkeypatch):
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
    dask = [str(Path(sys.executable).with_name("dask"))]
    address_file = tmp_path / "scheduler.json"
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = [*dask, "worker", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    file = ["--scheduler-file", str(address_file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    quiet = {"stderr": subprocess.DEVNULL, "cwd": tmp_path, "env": environment}
    processes = [subprocess.Popen(scheduler + file, **quiet)]
    try:
        processes += [subprocess.Popen(worker + file, **quiet) for _ in range(2)]
        with Client(scheduler_file=str(address_file), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        done = run(tmp_path / "run.zarr", client=address, rows="recompute")
        close(done.scores[...], reference["recompute"])
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=60)


def test_memory_rows_stay_in_this_process(tmp_path, client):
    with pytest.raises(PlanError, match='Use rows="zarr"'):
        run(tmp_path / "run.zarr", n_jobs=2, rows="memory")
    with pytest.raises(PlanError, match='Use rows="zarr"'):
        run(tmp_path / "run.zarr", client=client, rows="memory")


def test_one_executor_at_a_time(tmp_path, client):
    with pytest.raises(PlanError, match="not both"):
        run(tmp_path / "run.zarr", n_jobs=2, client=client)


# Further queries on stored rows


def test_a_query_reads_no_training_data(tmp_path, truth):
    columns = {name: ["x"] * N for name in ("label", "text", "a", "b", "c")}
    first = run(tmp_path / "first.zarr", rows="zarr", metadata={"train": columns})
    other = loader(4, 9, 3)
    second = run_influences(
        build(), other, first, tmp_path / "second.zarr", progress=False, ids={"test": list("abcd")}
    )
    assert second.attrs["gradients"] == 4
    assert second.damping == first.damping
    assert second.metadata("train")["label"].tolist() == ["x"] * N
    assert second.test_ids.tolist() == list("abcd")
    whole = run(tmp_path / "whole.zarr", test=other, rows="zarr")
    np.testing.assert_array_equal(second.scores[...], whole.scores[...])
    np.testing.assert_array_equal(compute_self_influence(second), first.self_influence())
    again = run_influences(
        build(), other, first, tmp_path / "second.zarr", progress=False, ids={"test": list("abcd")}
    )
    assert again.attrs == second.attrs
    third = run_influences(build(), query_loader(), second, tmp_path / "third.zarr", progress=False)
    np.testing.assert_array_equal(third.scores[...], first.scores[...])


def test_queries_of_a_run_that_was_stopped_are_refused(tmp_path, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "write_piece", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped.zarr", rows="zarr")
    stopped = InfluenceRun.open(tmp_path / "stopped.zarr")
    with pytest.raises(
        StoreError, match=r"stopped.zarr is not complete. Call run_influences again"
    ):
        run_influences(build(), query_loader(), stopped, tmp_path / "q.zarr")


def test_queries_are_refused_without_rows_or_with_another_model(tmp_path):
    kept = run(tmp_path / "kept.zarr", rows="zarr")
    no_rows = r"not.zarr keeps no training rows \(rows='memory'\)\. .* made with rows=\"zarr\""
    with pytest.raises(StoreError, match=no_rows):
        run_influences(
            build(), query_loader(), run(tmp_path / "not.zarr", rows="memory"), tmp_path / "q.zarr"
        )
    other = build()
    other.model[2].bias.data += 1
    with pytest.raises(ModelError, match=r"(?s)another model.*2\.bias"):
        run_influences(other, query_loader(), kept, tmp_path / "q.zarr", progress=False)
    assert not (tmp_path / "q.zarr").exists()


def test_a_query_knows_when_its_rows_are_those_of_another_run(tmp_path):
    settings = {"rows": "zarr", "self_influence": True}
    first = run(tmp_path / "first.zarr", **settings)
    second = run_influences(
        build(), query_loader(), first, tmp_path / "second.zarr", progress=False
    )
    np.testing.assert_array_equal(second.relative_influence(), first.relative_influence())
    assert second.has_self_influence
    run(tmp_path / "first.zarr", train=loader(N, 8, 5), overwrite=True, **settings)
    assert not second.has_self_influence
    for values in (second.self_influence, second.relative_influence):
        with pytest.raises(StoreError, match="holds another run now: training data differ"):
            values()
    run(tmp_path / "first.zarr", overwrite=True, **settings)  # the same again
    assert second.has_self_influence


def test_whether_self_influences_are_there(tmp_path):
    first = run(tmp_path / "first.zarr", rows="zarr")
    second = run_influences(
        build(), query_loader(), first, tmp_path / "second.zarr", progress=False
    )
    assert (first.has_self_influence, second.has_self_influence) == (False, False)
    with pytest.raises(StoreError, match=r"compute_self_influence\(run\) makes them"):
        second.self_influence()
    np.testing.assert_array_equal(compute_self_influence(second), first.self_influence())
    assert (first.has_self_influence, second.has_self_influence) == (True, True)


# The record


def test_ids_and_metadata(tmp_path):
    ids = {"test": [f"query {i}" for i in range(M)], "train": np.arange(N) * 10}
    metadata = {
        "train": {"label": ["naïve", ""] * 11 + ["<b>"], "weight": np.linspace(0, 1, N)},
        "test": {"right": np.arange(M) % 2 == 0},
        "run": {"rate": 1e-3, "layers": ["q", "v"], "none": None},
    }
    done = run(tmp_path / "run.zarr", ids=ids, metadata=metadata)
    opened = InfluenceRun.open(tmp_path / "run.zarr")
    assert opened.test_ids.tolist() == ids["test"]
    assert opened.train_ids.tolist() == ids["train"].tolist()
    assert opened.metadata("train")["label"].tolist() == metadata["train"]["label"]
    np.testing.assert_array_equal(opened.metadata("train")["weight"], metadata["train"]["weight"])
    assert opened.metadata("test")["right"].dtype == bool
    assert opened.metadata("run") == metadata["run"]
    assert opened.top(2, test="query 3")[0].tolist() == done.top(2)[0][3].tolist()
    assert set(opened.top(2)[0].ravel().tolist()) <= set(ids["train"].tolist())


@pytest.mark.filterwarnings("error")
def test_xarray_opens_a_run(tmp_path):
    import xarray

    run(tmp_path / "run.zarr", ids={"train": [f"t{i}" for i in range(N)]}, rows="zarr")
    with xarray.open_zarr(tmp_path / "run.zarr") as opened:
        assert opened["scores"].dims == ("test", "train")
        assert opened.attrs["sign"].startswith("positive")
        one = opened["scores"].sel(test=2, train="t5").values
    done = InfluenceRun(tmp_path / "run.zarr")
    assert one == done.scores[2, 5]
    assert done.to_xarray()["scores"].shape == (M, N)


def test_without_xarray_the_extra_is_named(tmp_path, monkeypatch):
    done = run(tmp_path / "run.zarr")
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install pydvl-datainf\[xarray\]"):
        done.to_xarray()


def test_every_chunk_has_a_checksum_and_intermediate_results_are_gone(tmp_path):
    run(tmp_path / "run.zarr", rows="zarr", top_k=2, metadata={"test": {"text": ["?"] * M}})
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    rows = dict(group["rows"].arrays())
    arrays = {**dict(group.arrays()), **rows}
    assert {"0", "top", "test_text", "block"} <= set(arrays)
    for array in arrays.values():
        assert type(array.compressors[-1]).__name__ == "Crc32cCodec"
    assert [name for name, _ in group.groups()] == ["rows"]


def test_self_influences_that_were_not_asked_for_can_be_added(tmp_path, truth):
    first = run(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match="self_influence=True"):
        first.self_influence()
    again = run(tmp_path / "run.zarr", self_influence=True)
    close(again.self_influence(), truth["selves"])
    assert again.attrs["gradients"] == first.attrs["gradients"] + N  # rows were in memory only


def test_a_store_in_this_process(truth):
    done = run(zarr.storage.MemoryStore())
    close(done.scores[...], truth["scores"].sum(1))


def test_file_urls_are_paths(tmp_path, truth):
    run(f"file://{tmp_path}/run.zarr")
    close(InfluenceRun(tmp_path / "run.zarr").scores[...], truth["scores"].sum(1))


def test_zip_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="zip file"):
        run(tmp_path / "run.zip")


@pytest.mark.parametrize("place", ["a" * 5000, "b" * 300, "a\0b", "\ud800", "~nobody-here/a"])
def test_what_can_be_no_path_is_refused(place):
    with pytest.raises(StoreError, match=r"cannot be the path of a store: .+\."):
        InfluenceRun(place)
    with pytest.raises(StoreError, match=r"cannot be the path of a store: .+\."):
        run(place)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1}, {"a": True}, "run metadata: a: 1 in the store, True now"),
        ({"a": [0, {"b": [True]}]}, {"a": [0, {"b": [1]}]}, "run metadata: a: "),
        ({"a": {"b": False}}, {"a": {"b": 0}}, r"run metadata: a: 1 differ \('b'\)"),
    ],
)
def test_truth_values_are_no_numbers(tmp_path, first, second, message):
    run(tmp_path / "run.zarr", metadata={"run": first})
    with pytest.raises(StoreExistsError, match=message):
        run(tmp_path / "run.zarr", metadata={"run": second})


def test_ids_of_another_type_are_the_same_run(tmp_path):
    first = run(tmp_path / "run.zarr", ids={"train": list(range(N))})
    again = run(tmp_path / "run.zarr", ids={"train": np.arange(N, dtype=np.uint8)})
    assert again.attrs == first.attrs


def test_a_finished_run_is_not_computed_again(tmp_path, monkeypatch):
    first = run(tmp_path / "run.zarr")
    scores = (tmp_path / "run.zarr" / "scores" / "c" / "0" / "0").stat().st_mtime_ns
    monkeypatch.setattr(DataInfInfluence, "loss_gradients_by_block", None)
    again = run(tmp_path / "run.zarr")
    assert again.attrs == first.attrs
    assert (tmp_path / "run.zarr" / "scores" / "c" / "0" / "0").stat().st_mtime_ns == scores


READS = {
    "ids": lambda opened: opened.train_ids,
    "damping": lambda opened: opened.damping,
    "columns": lambda opened: opened.metadata("train"),
    "mean": lambda opened: opened.mean_influence(),
    "self": lambda opened: opened.self_influence(),
    "top": lambda opened: opened.top(2),
    "scores": lambda opened: opened.scores,
    "progress": lambda opened: opened.progress(),
    "check": lambda opened: opened.check(),
    "comparison": lambda opened: opened.approximation_error,
    "xarray": lambda opened: opened.to_xarray(),
    "query": lambda opened: run_influences(
        build(), query_loader(), opened, "nowhere.zarr", progress=False
    ),
}


@pytest.fixture(scope="module")
def replaced(tmp_path_factory):
    """A run that was read from, and by now is another one, of more samples."""
    place = tmp_path_factory.mktemp("replaced") / "run.zarr"
    settings = {"rows": "zarr", "self_influence": True, "exact_sample": 10, "overwrite": True}
    opened = run(place, metadata={"train": {"x": np.arange(N)}}, **settings)
    for name in READS.keys() - {"query"}:
        READS[name](opened)
    run(place, train=loader(40, 8, 5), metadata={"train": {"x": np.arange(40)}}, **settings)
    return opened


@pytest.mark.parametrize("name", READS)
def test_an_open_run_does_not_read_the_one_that_replaced_it(replaced, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"was replaced, or deleted.*InfluenceRun\.open"):
        READS[name](replaced)


def test_an_open_run_reads_the_same_run_made_again(tmp_path):
    opened = run(tmp_path / "run.zarr")
    before = opened.mean_influence()
    run(tmp_path / "run.zarr", overwrite=True)
    np.testing.assert_array_equal(opened.mean_influence(), before)


def test_another_plan_is_another_run(tmp_path):
    run(tmp_path / "run.zarr")
    with pytest.raises(StoreExistsError, match="train_tile"):
        run(tmp_path / "run.zarr", tile=(7, 9))
    assert run(tmp_path / "run.zarr", tile=(7, 9), overwrite=True).plan.train_tile == 9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": "disk"}, "rows must be one of"),
        ({"top_k": 0}, "top_k must be a positive number"),
        ({"top_k": 2, "by_block": True}, "leave out top_k or by_block"),
        ({"tile": (0, 3)}, "test side of a tile"),
        ({"tile": (1, 2, 3)}, r"\(test, train\) samples"),
        ({"memory": "much"}, 'text like "2GiB"'),
        ({"memory": 0}, "memory must be positive"),
        ({"memory": 100}, "the smallest that works is memory="),
        ({"ids": {"train": [1] * N}}, "must be unique"),
        ({"ids": {"query": [1] * N}}, "'query'"),
        ({"metadata": {"test": {"label": ["a"]}}}, r"expected \(7,\)"),
        ({"metadata": {"test": {"label": [object()] * M}}}, "all strings or all numbers"),
        ({"metadata": {"test": {"two words": [1] * M}}}, "needs a name like"),
        ({"metadata": {"run": {"a": object()}}}, "JSON"),
        ({"query_groups": [1, 2]}, r"query_groups have shape \(2,\); expected \(7,\)"),
    ],
)
def test_bad_arguments_are_refused_before_a_store_is_made(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run.zarr", **wrong)
    assert not (tmp_path / "run.zarr").exists()


def test_the_smallest_memory_works(tmp_path, truth):
    with pytest.raises(PlanError) as refused:
        run(tmp_path / "run.zarr", memory=100, rows="recompute")
    smallest = int(str(refused.value).split("memory=")[1].rstrip(".").replace(",", ""))
    done = run(tmp_path / "run.zarr", memory=smallest, rows="recompute")
    close(done.scores[...], truth["scores"].sum(1))
    with pytest.raises(PlanError):
        run(tmp_path / "less.zarr", memory=smallest - 1, rows="recompute")


def test_progress_is_shown(tmp_path, capsys):
    run(tmp_path / "run.zarr", progress=True)
    shown = capsys.readouterr().err
    assert "test gradients" in shown
    assert "scores" in shown


def test_the_model_is_left_as_it_was(tmp_path):
    influence = build()
    influence.model.train()
    before = {name: value.clone() for name, value in influence.model.state_dict().items()}
    state = torch.get_rng_state()
    run(tmp_path / "run.zarr", influence)
    assert influence.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in influence.model.state_dict().items())
    assert not influence.is_fitted
