"""Places that jobs name: files, folders, models and URLs."""

from pathlib import Path

import pytest

from pydvl_datainf import JobError
from pydvl_datainf.jobfile.paths import anchored, file_in, model_in, path_in


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("loop", "Symlink loop"),
        ("loop/x", "Symlink loop"),
        ("a\0b", "null byte"),
        ("\ud800", "surrogates not allowed"),
        ("~nobody-at-all/x", "home directory"),
    ):
        for place in (path_in, model_in, file_in):
            with pytest.raises(JobError, match=rf"names no file or folder: .*{message}"):
                place(tmp_path, name)
    with pytest.raises(JobError, match="s3://bucket/a is a URL, and data is read from files"):
        file_in(tmp_path, "s3://bucket/a")


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
