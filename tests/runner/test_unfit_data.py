"""Losses and gradients that are no numbers, and data that changes, streams, or is empty."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import stopped_run
from pydvl_datainf import DataInfInfluence, ModelError, SourceError
from stopped_run import SIDES, TIGHT, M, N, build, loader, root_of_sum, run, samples, with_value
from undisturbed import assert_same, gradients

# Losses and gradients that are no numbers

BAD = [("train", 0), ("train", 17), ("train", N - 1), ("test", 3), ("test", M - 1)]


@pytest.mark.parametrize(
    ("side", "position", "value", "gradients"),
    [(*place, np.nan, "auto") for place in BAD]
    + [("train", 17, np.inf, "auto"), ("train", N - 1, np.nan, "functional")],
)
def test_the_sample_whose_loss_is_no_number_is_named(tmp_path, side, position, value, gradients):
    data, influence = with_value(side, position, value), build(gradients=gradients)
    ids = {side: [f"s{i}" for i in range(SIDES[side][0])]}
    expected = rf"Position {position} of the {SIDES[side][3]} data \(id 's{position}'\)"
    with pytest.raises(ModelError, match=expected):
        run(tmp_path / "run.zarr", influence=influence, ids=ids, **data)


def test_numbers_as_ids_look_like_numbers_and_groups_have_none(tmp_path):
    ids = {"train": np.arange(100, 100 + N)}
    with pytest.raises(ModelError, match=r"Position 17 of the training data \(id 117\): "):
        run(tmp_path / "ids.zarr", ids=ids, **with_value("train", 17, np.nan))
    with pytest.raises(ModelError, match="Position 9 of the test data: "):
        run(tmp_path / "groups.zarr", query_groups=[0] * M, **with_value("test", 9, np.nan))


@pytest.mark.parametrize(("side", "position"), BAD)
def test_the_sample_whose_gradient_is_no_number_is_named(tmp_path, side, position):
    """The loss is zero there, and its derivative infinite."""
    length, seed, batch_size, name = SIDES[side]
    x, y = samples(length, seed)
    x[position] = 0
    influence = DataInfInfluence(nn.Linear(3, 4, bias=False), root_of_sum)
    with pytest.raises(ModelError, match=f"Position {position} of the {name} data.*gradient"):
        run(tmp_path / "run.zarr", influence=influence, **{side: loader((x, y), batch_size)})


@pytest.mark.parametrize(
    ("side", "position", "rows"),
    [("train", 16, "memory"), ("test", 9, "zarr"), ("train", 16, "recompute")],
)
def test_what_was_done_before_such_a_sample_stays(tmp_path, undisturbed, side, position, rows):
    sample = samples(*SIDES[side][:2])[0][position]
    settings = {"rows": rows, "memory": TIGHT[rows]}
    with pytest.raises(ModelError, match=f"Position {position} of "):
        run(tmp_path / "run.zarr", stopped_run.Poison(sample, np.nan), **settings)
    assert gradients(tmp_path / "run.zarr") > 0
    run(tmp_path / "run.zarr", **settings)
    assert_same(tmp_path / "run.zarr", undisturbed[rows])
    again = N if rows == "memory" else 0
    assert gradients(tmp_path / "run.zarr") <= gradients(undisturbed[rows]) + again


# Data that does not serve


class Noise(Dataset):
    """Another sample every time, as random augmentation gives."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return torch.rand(3), torch.tensor(0)


@pytest.mark.parametrize(
    ("side", "rows"),
    [("test", "memory"), ("train", "memory"), ("train", "zarr"), ("train", "recompute")],
)
def test_data_that_changes_between_two_reads_is_refused(tmp_path, side, rows):
    with pytest.raises(SourceError, match=r"Batch 0 differs between two reads.*augmentation"):
        run(tmp_path / "run.zarr", rows=rows, **{side: DataLoader(Noise(SIDES[side][0]), 5)})


class Stream(IterableDataset):
    def __iter__(self):
        return zip(*samples(N, 1), strict=True)


def empty_loader():
    return DataLoader(TensorDataset(*samples(0, 1)), 5)


def shuffled_loader():
    return DataLoader(TensorDataset(*samples(N, 1)), 5, shuffle=True)


@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (shuffled_loader(), "random order.*shuffle=False"),
        (Stream(), "is a stream"),
        (DataLoader(Stream(), 5), "is a stream"),
        (empty_loader(), "is empty"),
        (iter([samples(N, 1)]), "Pass a dataset"),
    ],
    ids=["shuffled", "stream", "stream loader", "no samples", "iterator"],
)
def test_data_of_the_wrong_kind_is_refused_before_a_store_is_made(tmp_path, side, data, message):
    with pytest.raises(SourceError, match=f"(training|train|test) .*{message}"):
        run(tmp_path / "run.zarr", **{side: data})
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize("data", [TensorDataset(*samples(0, 1)), []], ids=["dataset", "list"])
def test_no_data_at_all_is_refused_before_a_store_is_made(tmp_path, side, data):
    settings = {"test": loader(samples(M, 2), 4), "train": loader(samples(N, 1), 5), side: data}
    with pytest.raises(SourceError, match="empty"):
        stopped_run.run_influences(build(), store=tmp_path / "run.zarr", progress=False, **settings)
    assert not (tmp_path / "run.zarr").exists()


def test_a_model_that_was_fitted_on_other_data_is_refused_before_a_store_is_made(tmp_path):
    fitted = build().fit(loader(samples(N - 1, 1), 5))
    with pytest.raises(SourceError, match="fitted on 22 samples, and the training data has 23"):
        run(tmp_path / "run.zarr", influence=fitted)
    assert not (tmp_path / "run.zarr").exists()
