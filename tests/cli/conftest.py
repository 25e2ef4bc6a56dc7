"""Jobs on tiny tuned models, with their data."""

import shutil

import pytest

from commands import printed
from jobs import reviews, write_csv, write_job, write_language_job


@pytest.fixture
def folder(tuned, tmp_path):
    """A job on a causal language model, with its data."""
    return write_language_job(tmp_path, tuned)


@pytest.fixture(scope="session")
def finished_job(tuned, tmp_path_factory):
    folder = write_language_job(tmp_path_factory.mktemp("finished"), tuned)
    printed("run", folder / "job.yaml", "--no-progress")
    return folder


@pytest.fixture
def finished(finished_job, tmp_path):
    """The same job with its run, which may be changed."""
    return shutil.copytree(finished_job, tmp_path, dirs_exist_ok=True)


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
