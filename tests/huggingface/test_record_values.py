"""Values of records: what is missing, or is no text, is named with its place."""

import pytest

from pydvl_datainf import SourceError
from pydvl_datainf.huggingface import read_records
from pydvl_datainf.huggingface.record_values import column, text_column
from pydvl_datainf.huggingface.records import Place
from tuned import write_lines


def half(value):
    """A record whose column x holds half of a surrogate pair somewhere."""
    return (Place("a.jsonl", "line", 1), {"x": value})


@pytest.mark.parametrize("value", ["\ud800", ["\udc80"], [{"a": "x\udfff"}], {"\ud800": 1}])
def test_half_characters_are_refused_wherever_they_are(value):
    with pytest.raises(SourceError, match="line 1: column 'x' is not text"):
        column(half(value), "x")
    assert column(half("😀"), "x") == "😀"  # both halves


def test_half_characters_in_a_file_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud800"}\n')
    with pytest.raises(SourceError, match="line 1: column 'text' is not text"):
        text_column(read_records(tmp_path / "a.jsonl")[0], "text")


def test_missing_columns_are_named_with_those_that_are_there(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "x", "n": 3}, {"text": None, "n": 3}])
    first, second = read_records(path)
    assert column(first, "text") == "x"
    with pytest.raises(SourceError, match=r"line 1: no column 'label'; there are text, n"):
        column(first, "label")
    with pytest.raises(SourceError, match="line 2: column 'text' is empty"):
        column(second, "text")
    with pytest.raises(SourceError, match="'n' must be text, got int"):
        text_column(first, "n")
