"""What a data set tells of its samples, and what a caller tells in place of it."""

import pytest
import torch
from datasets import Dataset

from pydvl_datainf.huggingface.shown import ShownLoader, shown_of, with_shown
from tuned import tokenizer


def test_texts_numbers_truth_values_and_conversations_are_shown_in_their_order():
    data = Dataset.from_dict(
        {
            "words": ["b", "a"],
            "talk": [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]] * 2,
            "level": [2, 1],
            "share": [0.5, 0.25],
            "good": [True, False],
            "tokens": [3, 4],
            "input_ids": [[1, 2], [3]],
            "not a name": [1, 2],
        }
    )
    columns, ids = shown_of(data.with_format("torch"), tokenizer())
    assert ids is None
    assert columns == {
        "words": ["b", "a"],
        "talk": ["user: Hi\nassistant: "] * 2,
        "level": [2, 1],
        "share": [0.5, 0.25],
        "good": [True, False],
    }
    assert list(columns) == ["words", "talk", "level", "share", "good"]


def test_columns_with_gaps_are_left_out():
    data = Dataset.from_dict({"text": ["a", "b"], "source": ["x", None], "early": [None, "y"]})
    assert shown_of(data, None) == ({"text": ["a", "b"]}, None)


@pytest.mark.parametrize("ids", [[7, 3], ["p", "q"]])
def test_ids_are_texts_or_whole_numbers_that_differ(ids):
    columns, found = shown_of(Dataset.from_dict({"id": ids, "text": ["a", "b"]}), None)
    assert found == ids
    assert list(columns) == ["text"]


@pytest.mark.parametrize("ids", [["p", "p"], [0.5, 1.0], ["p", None]])
def test_others_are_not_left_out_in_silence(ids):
    data = Dataset.from_dict({"id": ids, "text": ["a", "b"]})
    with pytest.warns(UserWarning, match="samples are numbered from 0"):
        columns, found = shown_of(data, None)
    assert found is None
    assert list(columns) == ["text"]


def test_tokens_are_written_out_where_there_is_no_text():
    words = tokenizer()
    data = Dataset.from_dict({"input_ids": words(["What is 1?", "It is 2."])["input_ids"]})
    assert shown_of(data, words)[0] == {"text": ["What is 1?", "It is 2."]}
    assert shown_of(data, None)[0] == {}


@pytest.mark.parametrize("data", [[{"text": "a"}], Dataset.from_list([]), torch.ones(3, 2)])
def test_of_other_data_nothing_is_known(data):
    assert shown_of(data, tokenizer()) == ({}, None)


def loader(name):
    return ShownLoader([1, 2], 1, None, {"text": [name, name]}, [f"{name} 0", f"{name} 1"])


def test_what_a_caller_tells_of_a_side_takes_the_place_of_what_its_loader_tells():
    sides = {"train": loader("train"), "test": loader("test")}
    ids, metadata = with_shown({"test": [5, 6]}, {"train": {"level": [1, 2]}, "run": {}}, sides)
    assert ids == {"train": ["train 0", "train 1"], "test": [5, 6]}
    assert metadata == {
        "train": {"level": [1, 2]},
        "test": {"text": ["test", "test"]},
        "run": {},
    }


def test_other_loaders_tell_nothing():
    assert with_shown(None, None, {"train": [1, 2]}) == (None, None)


def test_what_is_no_mapping_is_left_to_be_refused():
    assert with_shown([1], [2], {"train": loader("train")}) == ([1], [2])
