"""Misspelt labels and columns: what is told of them, and where they are named."""

from pathlib import Path

import pytest

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.classes import label_id
from pydvl_datainf.huggingface.record_values import column
from pydvl_datainf.huggingface.records import LabelName, Place

PLACE = Place(Path("test.csv"), "line", 3)
LABELS = {"good": 0, "bad": 1}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("goood", "'goood' is none of good, bad, or a number from 0 to 1. Did you mean 'good'?"),
        ("other", "'other' is none of good, bad, or a number from 0 to 1. Correct it there"),
        (2, "2 is none of good, bad, or a number from 0 to 1. Correct it there"),
        (LabelName("god"), "'god' is none of good, bad, .* Did you mean 'good'?"),
    ],
)
def test_a_label_that_no_output_has_is_told_with_like_ones(value, told):
    told = told.replace("?", r"\?")
    with pytest.raises(SourceError, match=rf"test.csv, line 3: label {told}"):
        label_id(value, LABELS, 2, (PLACE, {}))


def test_a_label_where_outputs_have_no_names_asks_for_them():
    with pytest.raises(SourceError, match=r"from 0 to 1. Name the model's outputs, .* labels: \["):
        label_id("good", {}, 2, (PLACE, {}))


def test_names_that_are_other_numbers_leave_no_room_for_numbers():
    with pytest.raises(SourceError, match=r"label '7' is none of 5, 4\. Correct it there"):
        label_id("7", {"5": 0, "4": 1}, 2, (PLACE, {}))


@pytest.mark.parametrize(
    ("name", "near"),
    [("reveiw", r" Did you mean 'review'\?"), ("Verdict", r" Did you mean 'verdict'\?"), ("x", "")],
)
def test_a_column_that_is_not_there_is_told_with_like_ones_and_where_it_is_named(name, near):
    placed = (PLACE, {"review": "a", "verdict": "b"})
    told = rf"line 3: no column '{name}'; there are review, verdict\.{near} In a job columns: says"
    with pytest.raises(SourceError, match=told):
        column(placed, name)
