"""Places that jobs name: files, folders, models and URLs."""

from pathlib import Path

import pytest

from pydvl_datainf import JobError
from pydvl_datainf.huggingface import read_records
from pydvl_datainf.jobfile.paths import anchored, data_in, file_in, model_in, path_in


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("loop", "Symlink loop"),
        ("loop/x", "Symlink loop"),
        ("a\0b", "null byte"),
        ("\ud800", "surrogates not allowed"),
        ("~nobody-at-all/x", "home directory"),
    ):
        for place in (path_in, data_in, model_in, file_in):
            with pytest.raises(JobError, match=rf"names no file or folder: .*{message}"):
                place(tmp_path, name)
    with pytest.raises(JobError, match="s3://bucket/a is a URL, and data is read from files"):
        file_in(tmp_path, "s3://bucket/a")


def test_data_keep_the_name_of_a_link(tmp_path, monkeypatch):
    for folder in ("blobs", "snapshots", "snapshots/x"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs" / "abc").write_text('{"text": "a"}\n', encoding="utf-8")
    (tmp_path / "snapshots" / "x" / "train.jsonl").symlink_to("../../blobs/abc")
    (tmp_path / "here").symlink_to("snapshots")
    kept = tmp_path / "snapshots" / "x" / "train.jsonl"
    assert file_in(tmp_path, "here/x/train.jsonl") == kept
    assert [record for _, record in read_records(kept)] == [{"text": "a"}]
    assert path_in(tmp_path, "here/x/train.jsonl") == str(tmp_path / "blobs" / "abc")
    monkeypatch.chdir(tmp_path / "snapshots")
    assert anchored({"train": "x/train.jsonl"}) == {"train": str(kept)}
    assert data_in(tmp_path, "here/..") == str(tmp_path)
    (tmp_path / "latest").symlink_to("v3.jsonl")
    assert file_in(tmp_path, "latest") == tmp_path / "v3.jsonl"
    assert data_in(tmp_path, "s3://bucket/a") == "s3://bucket/a"


def test_places(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    assert path_in(tmp_path, "a/b.csv") == str(tmp_path / "a" / "b.csv")
    assert path_in(tmp_path, "/a/b.csv") == "/a/b.csv"
    assert path_in(tmp_path, "s3://bucket/a") == "s3://bucket/a"
    assert path_in(tmp_path, "~/a") == str(Path.home() / "a")
    assert model_in(tmp_path, "here") == str(tmp_path / "here")
    assert model_in(tmp_path, "owner/name") == "owner/name"
    assert model_in(tmp_path, "./there") == str(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    options = {"train": "a.csv", "model": "here", "adapter": None, "task": "x"}
    assert anchored(options) == {
        "train": str(tmp_path / "a.csv"),
        "model": str(tmp_path / "here"),
        "adapter": None,
        "task": "x",
    }
