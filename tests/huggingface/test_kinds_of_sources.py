"""Training data of a kind that cannot be read, where some of it is to be written."""

import pytest

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.subsets import check_writable


@pytest.mark.parametrize("name", ["next.jsonl", "next.json"])
def test_that_it_cannot_be_read_is_told_whatever_the_name_of_what_is_written(tmp_path, name):
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(SourceError, match=r"train\.json is none of the kinds that can be read"):
        check_writable(tmp_path / "train.json", tmp_path / name, overwrite=False)


def test_that_it_is_not_there_is_told_before_it_would_be_of_another_kind(tmp_path):
    (tmp_path / "train.csv").write_text("a\n1\n")
    with pytest.raises(SourceError, match=r"no file or folder .*trian\.csv. Did you mean .*train"):
        check_writable(tmp_path / "trian.csv", tmp_path / "next.jsonl", overwrite=False)
