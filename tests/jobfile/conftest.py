"""Jobs whose models can be tuned again."""

import pytest

from tuned import sums, write_lines
from tuned_again import reviews


@pytest.fixture
def classes(tuned, tmp_path):
    """A classifier with an adapter, whose head the base does not have."""
    write_lines(tmp_path / "train.jsonl", reviews(10))
    write_lines(tmp_path / "test.jsonl", reviews(5)[::-1])
    return {
        "task": "sequence-classification",
        "model": str(tuned.encoder),
        "adapter": str(tuned.classes_adapter),
        "labels": ["bad", "good"],
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "device": "cpu",
        "dtype": "float64",
    }


@pytest.fixture
def whole(classes, tuned):
    """The same of a classifier that was tuned whole."""
    del classes["adapter"], classes["labels"]
    return classes | {"model": str(tuned.classifier), "parameters": "all"}


@pytest.fixture
def causal(tuned, tmp_path):
    write_lines(tmp_path / "train.jsonl", sums(10))
    write_lines(tmp_path / "test.jsonl", sums(4)[::-1])
    return {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "adapter": str(tuned.causal_adapter),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "device": "cpu",
        "dtype": "float64",
    }
