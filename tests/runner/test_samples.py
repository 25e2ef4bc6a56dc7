"""Batches read in any order."""

import dask.array as da
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pydvl_datainf.batches import batch_named
from pydvl_datainf.errors import BatchError, SourceError
from pydvl_datainf.runner.batched_data import BatchIndex, as_batched, index_batches, read_again

X, Y = torch.arange(22).reshape(11, 2), torch.arange(11)
PAIRS = TensorDataset(X, Y)


def read_all(samples, order):
    return {i: samples.read(i) for i in order}


class Whole(Dataset):
    """Holds whole batches."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"x": X[4 * i : 4 * i + 4], "labels": Y[4 * i : 4 * i + 4]}


class AtOnce(Dataset):
    """Reads several samples at once, as Hugging Face's datasets do."""

    def __len__(self):
        return 11

    def __getitem__(self, i):
        raise AssertionError("single samples are not to be read")

    def __getitems__(self, indices):
        return [(X[i], Y[i]) for i in indices]


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(PAIRS, 4),
        DataLoader(PAIRS, 4, drop_last=True),
        DataLoader(PAIRS, 4, num_workers=2),
        DataLoader(PAIRS, batch_sampler=[[3, 1], [0], [5, 6, 7]]),
        DataLoader(PAIRS, 3, sampler=[2, 4, 9, 10]),
        DataLoader(PAIRS, 5, collate_fn=lambda s: {"x": torch.stack([x for x, _ in s])}),
        DataLoader(Whole(), batch_size=None),
        DataLoader(AtOnce(), 4),
    ],
    ids=["plain", "drop last", "workers", "batches", "sampler", "collate", "whole", "at once"],
)
def test_batches_are_those_of_the_loader(loader):
    expected = list(loader)
    samples = as_batched(loader, None, "training")
    assert len(samples) == len(expected)
    for i, batch in read_all(samples, reversed(range(len(samples)))).items():
        assert_same(batch, expected[i])


def assert_same(batch, expected):
    left, right = (batch_named(b if isinstance(b, dict) else tuple(b)) for b in (batch, expected))
    assert list(left) == list(right)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=0)


def test_a_dataset_has_batches_of_the_given_size():
    assert [len(as_batched(PAIRS, 4, "test").read(i)[1]) for i in range(3)] == [4, 4, 3]
    assert len(as_batched(PAIRS, None, "test").read(0)[1]) == 11


@pytest.mark.parametrize("single", [(X, Y), [X, Y], {"x": X, "labels": Y}])
def test_tensors_are_one_batch(single):
    samples = as_batched(single, 4, "test")
    assert len(samples) == 1
    assert_same(samples.read(0), single)


def test_dask_chunks_are_batches():
    x, y = da.from_array(X.numpy(), chunks=(4, 1)), da.from_array(Y.numpy(), chunks=5)
    samples = as_batched((x, y), None, "training")
    assert len(samples) == 3
    assert_same(samples.read(2), (X[8:], Y[8:]))


def test_dask_arrays_must_fit():
    x, y = da.from_array(X.numpy(), chunks=4), da.from_array(Y.numpy(), chunks=4)
    with pytest.raises(SourceError, match="x has 11 samples and y has 9"):
        as_batched((x, y[:9]), None, "training")
    with pytest.raises(SourceError, match="compute_chunk_sizes"):
        as_batched((x[x[:, 0] > 3], y[y > 1]), None, "training")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(PAIRS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(PAIRS, 4, shuffle=True), "random order"),
        (DataLoader(Stream(), 4), "stream"),
        (Stream(), "stream"),
        (iter([(X, Y)]), "list_iterator"),
        ("data.csv", "a str"),
        (None, "NoneType"),
    ],
)
def test_other_data_is_refused(data, message):
    with pytest.raises(SourceError, match=message):
        as_batched(data, None, "training")


def test_a_survey_knows_lengths_and_content():
    survey = BatchIndex(*zip(*index_batches(as_batched(PAIRS, 4, "test"), 0, 3), strict=True))
    assert survey.lengths == (4, 4, 3)
    assert survey.n == 11
    changed = Y.clone()
    changed[5] += 1
    other = BatchIndex(
        *zip(*index_batches(as_batched(TensorDataset(X, changed), 4, "test"), 0, 3), strict=True)
    )
    assert [a == b for a, b in zip(survey.digests, other.digests, strict=True)] == [1, 0, 1]
    assert survey.fingerprint != other.fingerprint


@pytest.mark.parametrize("other", [X.int(), X.reshape(22, 1)[:11], X.T.contiguous().T + 0 * X + 1])
def test_dtype_shape_and_values_change_the_checksum(other):
    before = index_batches(as_batched([(X, Y)], None, "test"), 0, 1)
    assert index_batches(as_batched([(other, Y)], None, "test"), 0, 1) != before


def test_memory_layout_does_not_change_the_checksum():
    strided = X.T.contiguous().T
    assert not strided.is_contiguous()
    first, second = (index_batches(as_batched([(x, Y)], None, "test"), 0, 1) for x in (X, strided))
    assert first == second


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float64, torch.uint8])
def test_all_dtypes_have_checksums(dtype):
    assert index_batches(as_batched([(X.to(dtype), Y)], None, "test"), 0, 1)


def test_a_batch_that_changed_is_refused():
    class Noisy(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.randn(2), i

    samples = as_batched(Noisy(), 2, "training")
    survey = BatchIndex(*zip(*index_batches(samples, 0, 2), strict=True))
    with pytest.raises(SourceError, match="Batch 1 differs between two reads"):
        read_again(samples, survey, 1)


def test_bad_batches_are_found_by_the_survey():
    with pytest.raises(BatchError, match="differ in their number"):
        index_batches(as_batched([(X, Y), (X, Y[:3])], None, "test"), 0, 2)


def test_arrays_of_numpy_are_no_tensors():
    with pytest.raises(BatchError, match="not a tensor"):
        index_batches(as_batched([(X.numpy(), np.arange(11))], None, "test"), 0, 1)
