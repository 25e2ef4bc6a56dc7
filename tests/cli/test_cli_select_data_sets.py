"""`pydvl-datainf select` of data that `datasets` loads: what it writes, jobs train on."""

import pytest
from datasets import Dataset

from commands import done, failed
from jobs import changed
from pydvl_datainf import InfluenceRun
from pydvl_datainf.jobfile.preparation import prepare
from pydvl_datainf.jobfile.reading import read_job
from tuned import sums

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def train_of(folder):
    return prepare(read_job(folder / "job.yaml", {}), folder, progress=False).material.train


def test_a_split_becomes_the_next_training_data(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (folder / "sums").mkdir()
    Dataset.from_list(sums(12)).to_parquet(folder / "sums" / "train.parquet")
    changed(folder, train={"dataset": "sums", "split": "train[2:]"}, exact_sample=0)
    done("run", folder / "job.yaml", "--no-progress")
    before = train_of(folder)
    mean = InfluenceRun(folder / "out.zarr").mean_influence()
    kept = sorted(mean.argsort(kind="stable")[-4:].tolist())
    args = ("select", folder / "out.zarr", "--keep-helpful", "4", "-o")
    assert "is the data itself" in failed(1, *args, folder / "sums" / "next.jsonl")
    assert "written as .jsonl or .parquet" in failed(1, *args, folder / "next.csv")
    for name in ("next.jsonl", "next.parquet", "next"):
        said = done(*args, folder / name, "--overwrite")
        assert f"Kept 4 of 10 training samples: {folder / name}" in said
        changed(folder, train=name)
        after = train_of(folder)
        assert after.ids == [f"sum {i + 2}" for i in kept]
        assert after.samples.samples == [before.samples.samples[i] for i in kept]
    Dataset.from_list(sums(12)[::-1]).to_parquet(folder / "sums" / "train.parquet")
    message = failed(1, *args, folder / "other.jsonl")
    assert "train[2:], row 0: 'id' is 'sum 9', and was 'sum 2' when" in message
