"""Jobs on tiny tuned models, with their data."""

import shutil

import pytest

from commands import done
from jobs import changed, reviews, write_csv, write_job
from tuned import sums, write_lines


def causal_job(tuned, folder):
    """A job on a causal language model, with its data."""
    write_lines(folder / "train.jsonl", sums(20))
    write_lines(folder / "test.jsonl", sums(4)[::-1])
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
    write_job(folder, job)
    return folder


@pytest.fixture
def folder(tuned, tmp_path):
    return causal_job(tuned, tmp_path)


@pytest.fixture(scope="session")
def finished_job(tuned, tmp_path_factory):
    folder = causal_job(tuned, tmp_path_factory.mktemp("finished"))
    done("run", folder / "job.yaml", "--no-progress")
    return folder


@pytest.fixture
def finished(finished_job, tmp_path):
    """The same job with its run, which may be changed."""
    return shutil.copytree(finished_job, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def job_with_rows(tuned, tmp_path_factory):
    folder = causal_job(tuned, tmp_path_factory.mktemp("with_rows"))
    changed(folder, rows="zarr", exact_sample=0)
    done("run", folder / "job.yaml", "--no-progress")
    return folder


@pytest.fixture
def with_rows(job_with_rows, tmp_path):
    """The same job with a run that keeps rows."""
    return shutil.copytree(job_with_rows, tmp_path, dirs_exist_ok=True)


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
