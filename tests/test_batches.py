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


@pytest.mark.parametrize(
    "told",
    [
        {"max_length_q": 7},
        {"cu_seq_lens_k": torch.tensor([0, 3, 7])},
        {"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1, 1]])},
        {"seq_lengths": [[3, 4]]},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]])},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 0]]), "attention_mask": torch.ones(1, 7)},
    ],
)
def test_samples_that_share_a_row_are_refused_by_what_joins_them(told):
    batch = {"input_ids": torch.ones(1, 7).long(), "labels": torch.ones(1, 7).long(), **told}
    what = next(iter(told))
    with pytest.raises(BatchError, match=rf"joins samples in one row.*{what}.*packing=False"):
        check_batch(batch)


@pytest.mark.parametrize("count", ["seq_idx", "position_ids"])
def test_joined_rows_are_found_among_others(count):
    joined = {"seq_idx": [0, 0, 0, 1, 1], "position_ids": [0, 1, 2, 0, 1]}[count]
    whole = {"seq_idx": [0] * 5, "position_ids": [0, 1, 2, 3, 4]}[count]
    batch = {"input_ids": torch.ones(3, 5).long(), count: torch.tensor([whole, joined, whole])}
    with pytest.raises(BatchError, match="joins samples in one row"):
        check_batch(batch)


@pytest.mark.parametrize(
    "positions",
    [
        [0, 1, 2, 3, 4, 5],
        [0, 0, 0, 1, 2, 3],  # padding on the left
        [1, 1, 0, 1, 2, 3],  # as transformers counts it
        [0, 1, 2, 3, 0, 0],  # padding on the right
        [2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 1, 1],
        [5, 4, 3, 2, 1, 0],
    ],
)
def test_positions_of_one_sample_in_a_row(positions):
    row = torch.tensor([positions])
    for ids in (row, row.to(torch.int32), row.expand(4, -1)):
        batch = {"input_ids": torch.ones_like(ids), "position_ids": ids}
        assert set(check_batch(batch)) == {"input_ids", "position_ids"}


def test_positions_under_padding_do_not_count():
    ids = torch.tensor([[0, 1, 2, 0, 1]])
    batch = {"position_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    assert len(check_batch(batch)) == 2
