"""Ids and columns of samples, as they are checked before a run begins."""

import numpy as np
import pytest
import torch

from pydvl_datainf import BatchError
from pydvl_datainf.results.metadata import columns_of, digest, group_codes, json_of

LENGTHS = {"test": 0, "train": 3}


def column(values):
    return columns_of(None, {"train": {"x": values}}, LENGTHS)["train_x"]


def test_texts_stay_as_they_are_and_take_no_room_of_the_longest():
    texts = ["short", "NUL at the end\0", "x" * 10**6]
    found = column(texts)
    assert found.tolist() == texts
    assert found.dtype == object  # of which each entry is one reference
    assert column(np.array(["a", "b", "c"])).tolist() == ["a", "b", "c"]


def test_ids_that_differ_by_what_an_array_would_cut_are_two():
    ids = ["a", "a\0", "b"]
    assert columns_of({"train": ids}, None, LENGTHS)["train"].tolist() == ids


@pytest.mark.parametrize("values", [["a", 1, "b"], ["a", [1], "b"], ["a", None, "b"]])
def test_columns_of_several_kinds_are_refused(values):
    with pytest.raises(BatchError, match="must be all strings or all numbers"):
        column(values)


@pytest.mark.parametrize("values", [["a", "\ud800", "b"], ["a", "b", "\udfff"]])
def test_half_characters_are_refused(values):
    with pytest.raises(BatchError, match="column 'x' of the train data hold half of a surrogate"):
        column(values)
    with pytest.raises(BatchError, match="ids of the train data hold half of a surrogate"):
        columns_of({"train": values}, None, LENGTHS)


@pytest.mark.parametrize(
    "value", ["\ud800", float("nan"), 10**5000, {"\udc00": 1}], ids=["half", "nan", "long", "key"]
)
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(BatchError, match="must fit into JSON"):
        json_of({"a": [value]})


def test_what_is_nested_too_deeply_is_refused():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(BatchError, match="must fit into JSON"):
        json_of({"a": nested})


@pytest.mark.parametrize("shell", [lambda v: [v], lambda v: {"a": v}], ids=["list", "mapping"])
def test_the_metadata_of_a_run_are_nested_at_most_100_deep(shell):
    nested = 1
    for _ in range(99):  # the mapping around it is the hundredth
        nested = shell(nested)
    assert json_of({"a": nested}) == {"a": nested}
    with pytest.raises(BatchError, match="must fit into JSON, nested at most 100 deep"):
        json_of({"a": shell(nested)})


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="it is float64 here")
def test_floating_numbers_of_more_than_64_bits_are_refused():
    for values in (np.arange(3, dtype=np.longdouble), [np.longdouble(1), 2.5, 3]):
        with pytest.raises(BatchError, match=r"column 'x' .* at most 64 bits, .* not float128"):
            column(values)


@pytest.mark.parametrize(
    "values",
    [
        [2**63, 1, 2**64 - 1],
        [-(2**63), 0, 2**63 - 1],
        [2**53 + 1, 2**60 + 1, 3],
        [np.int32(4), 2**40, np.uint64(5)],
        np.array([1, 2, 3], dtype=np.longlong),
        np.array([1, 2, 2**63], dtype=np.ulonglong),
    ],
)
def test_whole_numbers_of_64_bits_stay_what_they_are(values):
    exact = [int(value) for value in values]
    assert column(values).tolist() == exact
    assert columns_of({"train": values}, None, LENGTHS)["train"].tolist() == exact


@pytest.mark.parametrize(
    "values", [[2**63, -1, 0], [2**64, 1, 2], [2**70, 1, 2], [-(2**63) - 1, 1, 2]]
)
def test_whole_numbers_that_64_bits_do_not_hold_are_refused(values):
    with pytest.raises(BatchError, match=r"column 'x' .* 64 bits do not hold together.*as strings"):
        column(values)
    with pytest.raises(BatchError, match="ids of the train data hold whole numbers"):
        columns_of({"train": values}, None, LENGTHS)


@pytest.mark.parametrize(
    "values",
    [
        [2**53 + 1, 0.5, 1],
        [0.5, np.int64(2**53 + 1), 1],
        [2**63 + 1, -1, True],
        [np.float16(0.5), np.int8(3), 2**53 + 1],
    ],
)
def test_whole_numbers_that_would_become_others_beside_floating_ones_are_refused(values):
    with pytest.raises(BatchError, match=r"column 'x' of the train data hold .* beside floating"):
        column(values)


def test_whole_numbers_that_floating_ones_hold_may_stand_beside_them():
    assert column([2**53, 0.5, -(2**60)]).tolist() == [2.0**53, 0.5, -(2.0**60)]


def test_numbers_in_bfloat16_are_kept_in_float32():
    found = column(torch.tensor([0.5, -1.25, 3.0], dtype=torch.bfloat16))
    assert (found.dtype, found.tolist()) == (np.float32, [0.5, -1.25, 3.0])


def test_what_is_no_array_is_refused():
    ragged = [[1], [1, 2], [3]]
    with pytest.raises(BatchError, match="column 'x' of the train data must be one number"):
        column(ragged)
    with pytest.raises(BatchError, match="ids of the train data must be one number"):
        columns_of({"train": ragged}, None, LENGTHS)


@pytest.mark.parametrize("given", [None, [1, 2], 5, "label"])
def test_metadata_of_a_side_that_are_no_columns_are_refused(given):
    with pytest.raises(BatchError, match="metadata of the train data must be a mapping of names"):
        columns_of(None, {"train": given}, LENGTHS)


@pytest.mark.parametrize("given", [["train"], 5, "train"])
def test_what_has_no_sides_is_refused(given):
    with pytest.raises(BatchError, match="ids must be a mapping with"):
        columns_of(given, None, LENGTHS)
    with pytest.raises(BatchError, match="metadata must be a mapping with"):
        columns_of(None, given, LENGTHS)


@pytest.mark.parametrize("ids", [None, "abc", 5])
def test_one_id_for_all_is_refused(ids):
    with pytest.raises(BatchError, match=r"have shape \(\); expected \(3,\)"):
        columns_of({"train": ids}, None, LENGTHS)


def test_sides_that_there_are_not_are_named_in_any_order():
    with pytest.raises(BatchError, match=r"has the keys \['x', 1\]"):
        columns_of({1: [1], "x": [1]}, None, LENGTHS)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64"])
def test_the_same_whole_numbers_have_one_checksum(dtype):
    listed, array = column([1, 2, 3]), column(np.array([1, 2, 3], dtype=dtype))
    assert digest({"x": listed}) == digest({"x": array})
    assert digest({"x": listed}) != digest({"x": column([1.0, 2.0, 3.0])})
    assert digest({"x": column([1, 0, 1])}) != digest({"x": column([True, False, True])})


# Groups of queries


@pytest.mark.parametrize(
    "labels",
    [["a", "a\0", "a", "b"], [2**63, 1, 2**63, 2**53 + 1], np.array([7, 5, 7, 3], dtype=object)],
)
def test_groups_are_those_of_equal_labels(labels):
    codes, names = group_codes(labels, 4)
    assert codes == (0, 1, 0, 2)
    assert names == [labels[0], labels[1], labels[3]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "1", 1, 1], "query_groups must be all strings or all numbers; found 1"),
        ([[1, 2]] * 4, r"query_groups have shape \(4, 2\); expected \(4,\)"),
        ([[1], [1, 2], [1], [1]], "query_groups must be one number, truth value or string for"),
        ("abcd", r"query_groups have shape \(\); expected \(4,\)"),
        (["a", "b", "a"], r"query_groups have shape \(3,\); expected \(4,\)"),
    ],
)
def test_labels_of_groups_that_cannot_be_told_apart_are_refused(labels, message):
    with pytest.raises(BatchError, match=message):
        group_codes(labels, 4)
