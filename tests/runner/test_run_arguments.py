"""What run_influences takes as data, places and options, and what it refuses."""

import os
from itertools import pairwise

import dask.array as da
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pydvl_datainf import DataInfInfluence, SequenceClassification, StoreError
from pydvl_datainf.influence.sample_rows import SampleRows
from pydvl_datainf.results.reader import InfluenceRun
from small_runs import M, N, close, network, oracle, run, samples, train_loader


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


@pytest.mark.parametrize("size", [10, 40])
def test_a_dataset_is_read_in_batches_of_the_size_of_the_influence_model(tmp_path, size):
    lengths, model = [], network()
    model.register_forward_pre_hook(lambda module, given: lengths.append(len(given[0])))
    influence = DataInfInfluence(model, F.cross_entropy, batch_size=size)
    run(tmp_path / "run.zarr", influence, train=Tokens(50, 1), rows="zarr")
    assert max(lengths) == size == influence.batch_size


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


def test_a_relative_store_is_where_the_call_began(tmp_path, monkeypatch):
    compute = SampleRows.of

    def wander(*arguments):
        os.chdir(tmp_path / "other")
        return compute(*arguments)

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SampleRows, "of", wander)
    made = run("run.zarr")
    assert os.getcwd() == str(tmp_path / "other")
    assert made.store.path == tmp_path / "run.zarr"
    close(made.scores, oracle()["scores"].sum(1))
