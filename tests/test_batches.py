"""What a batch may be."""

from collections import UserDict

import pytest
import torch

from pydvl_datainf import BatchError
from pydvl_datainf.batches import batch_length, batch_to, check_batch, signature, split_batch

X, Y = torch.arange(15.0).reshape(5, 3), torch.arange(5)


@pytest.mark.parametrize("pair", [(X, Y), [X, Y]])
def test_a_pair_becomes_a_tuple(pair):
    batch = check_batch(pair)
    assert isinstance(batch, tuple)
    assert batch_length(batch) == 5


@pytest.mark.parametrize("mapping", [{"x": X, "labels": Y}, UserDict(x=X, labels=Y)])
def test_a_mapping_becomes_a_dict(mapping):
    batch = check_batch(mapping)
    assert type(batch) is dict
    assert batch_length(batch) == 5


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, "got a Tensor"),
        ((X, Y, Y), "a tuple of 3 items"),
        ({}, "empty mapping"),
        ({"x": X, "text": ["a"] * 5}, "'text' of the batch is a list of 5 items"),
        ((X, None), "'y' of the batch is a NoneType"),
        ({"x": X, "t": torch.tensor(1)}, "'t' of the batch is a tensor without dimensions"),
        ((X, Y[:4]), r"\{'x': 5, 'y': 4\}"),
        ((X[:0], Y[:0]), "no samples"),
    ],
)
def test_anything_else_is_refused(batch, message):
    with pytest.raises(BatchError, match=message):
        check_batch(batch)


@pytest.mark.parametrize(("size", "lengths"), [(None, [5]), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_split(size, lengths):
    pieces = list(split_batch({"x": X, "labels": Y}, size))
    assert [batch_length(piece) for piece in pieces] == lengths
    assert torch.equal(torch.cat([piece["labels"] for piece in pieces]), Y)


def test_moving_detaches():
    x = X.clone().requires_grad_()
    assert not batch_to((x, Y), torch.device("cpu"))[0].requires_grad


def test_the_signature_knows_names_dtypes_and_dimensions_but_not_sizes():
    assert signature((X, Y)) == signature((X[:2, :1], Y[:2]))
    assert signature((X, Y)) != signature((X.double(), Y))
    assert signature((X, Y)) != signature((X, Y.unsqueeze(1)))
    assert signature({"x": X}) != signature({"z": X})


@pytest.mark.parametrize("told", [{"max_length_q": 7}, {"cu_seq_lens_k": torch.tensor([0, 3, 7])}])
def test_samples_that_share_a_row_are_refused_by_what_joins_them(told):
    batch = {"input_ids": torch.ones(1, 7).long(), "labels": torch.ones(1, 7).long(), **told}
    with pytest.raises(BatchError, match=r"joins samples in one row.*packing=False"):
        check_batch(batch)
