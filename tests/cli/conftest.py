"""Jobs on tiny tuned models, with their data."""

import pytest

from jobs import reviews, write_csv, write_job
from tuned import sums, write_lines


@pytest.fixture
def folder(tuned, tmp_path):
    """A job on a causal language model, with its data."""
    write_lines(tmp_path / "train.jsonl", sums(20))
    write_lines(tmp_path / "test.jsonl", sums(4)[::-1])
    job = {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "adapter": str(tuned.causal_adapter),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "columns": {"id": "id"},
        "device": "cpu",
        "batch_size": 8,
        "max_tokens": 100,
    }
    write_job(tmp_path, job)
    return tmp_path


@pytest.fixture
def classification(tuned, tmp_path):
    write_csv(tmp_path / "train.csv", reviews(15))
    write_csv(tmp_path / "test.csv", reviews(3))
    job = {
        "task": "sequence-classification",
        "model": str(tuned.encoder),
        "adapter": str(tuned.classes_adapter),
        "labels": ["bad", "good"],
        "train": "train.csv",
        "test": "test.csv",
        "columns": {"text": "review", "label": "verdict"},
        "out": "out.zarr",
        "device": "cpu",
        "batch_size": 4,
    }
    write_job(tmp_path, job)
    return tmp_path
