"""Samples from files: every kind gives the same records, and errors name the line."""

import contextlib
import csv
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydvl_datainf import SourceError
from pydvl_datainf.huggingface import read_arrays, read_records
from tuned import write_lines

RECORDS = [
    {"text": "plain", "label": "1"},
    {"text": 'with "quotes", a comma\nand a line break', "label": "0"},
    {"text": "Grüße, 世界 <b>not bold</b>", "label": "NA"},
    {"text": "null", "label": "007"},
]


def separated(path, separator):
    quoted = (
        [value.replace('"', '""') for value in (record["text"], record["label"])]
        for record in RECORDS
    )
    lines = "".join(f'"{text}"{separator}"{label}"\n' for text, label in quoted)
    path.write_text(f"text{separator}label\n{lines}", encoding="utf-8")


WRITERS = {
    "train.jsonl": lambda path: write_lines(path, RECORDS),
    "train.csv": lambda path: separated(path, ","),
    "train.tsv": lambda path: separated(path, "\t"),
    "train.parquet": lambda path: pq.write_table(pa.Table.from_pylist(RECORDS), path),
    "folder": lambda path: datasets.Dataset.from_list(RECORDS).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert [dict(record) for _, record in read_records(tmp_path / name)] == RECORDS


def test_places_are_lines_of_the_file(tmp_path):
    WRITERS["train.csv"](tmp_path / "train.csv")
    numbers = [place.number for place, _ in read_records(tmp_path / "train.csv")]
    assert numbers == [2, 4, 5, 6]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert [str(place) for place, _ in read_records(tmp_path / "a.jsonl")] == [
        f"{tmp_path / 'a.jsonl'}, line 1",
        f"{tmp_path / 'a.jsonl'}, line 3",
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufefftext,label\nx,1\n".encode())
    assert read_records(tmp_path / "a.csv")[0][1] == {"text": "x", "label": "1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1: expected an object"),
        ("a.jsonl", b"\n\n", "holds no samples"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not text in UTF-8"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "not text in UTF-8"),
        ("a.jsonl", b"\0" * 9, "line 1: not JSON"),
        ("a.jsonl", b"\n" + b"[" * 10**6, "line 2: not JSON: maximum recursion"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', r"line 2: 'a' stands twice in one object\.$"),
        ("a.jsonl", b'{"m": [{"a": 1, "a": 2}]}\n', "line 1: 'a' stands twice in one object"),
        ("a.jsonl", b'{"a": ' + b"9" * 6000 + b"}", "line 1: a number of 6,000 digits; write it"),
        ("a.csv", b"text,label\nx,1,2\n", "line 2: other columns than in the header"),
        ("a.csv", b"text,label\nx\n", "line 2: other columns"),
        ("a.csv", b'text,label\n"x,1\n', "line 2: unexpected end"),
        ("a.csv", b"text,text\nx,y\n", "'text' stands twice"),
        ("a.csv", b"\ntext,label\nx,1\n", "line 1: it is empty, and the names of the columns"),
        ("a.csv", b"text,label\n", "holds no samples"),
        ("a.csv", b"", "holds no samples"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
        ("a.xlsx", b"", r"none of the kinds that can be read: \.csv, \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_records(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_pipes_are_not_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SourceError, match=f"{name} is no file, but a folder, a pipe, a socket"):
        read_records(tmp_path / name)
    with pytest.raises(SourceError, match=f"{name} is no file, but a folder, a pipe, a socket"):
        read_arrays(tmp_path / name)


def test_names_that_no_file_can_have(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read: .*File name too long"):
        read_records(tmp_path / ("x" * 300 + ".csv"))


@given(st.binary(max_size=60), st.sampled_from(["a.jsonl", "a.csv", "a.tsv"]))
def test_any_bytes_are_records_or_refused(content, name):
    with TemporaryDirectory() as folder, contextlib.suppress(SourceError):
        Path(folder, name).write_bytes(content)
        assert read_records(Path(folder, name))


def image_file(path, content=None, **arrays):
    np.savez(path, **arrays)
    path.write_bytes(path.read_bytes() if content is None else content)
    return path


PIXELS = np.zeros((3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "arrays", "message"),
    [
        (b"", {}, "cannot be read as .npz"),
        (b"PK\x03\x04 and no more", {}, "cannot be read as .npz"),
        (b"\x93NUMPY", {}, "cannot be read as .npz"),
        (None, {"images": np.array([None, 1], dtype=object)}, "cannot be read as .npz: Object"),
        (None, {"images": np.zeros((3, 4, 4, 3, 2), dtype=np.uint8)}, "needs an array 'images'"),
        (None, {"images": PIXELS, "label": np.zeros(2)}, "label must have one entry an image"),
    ],
)
def test_arrays_that_cannot_be_read_are_named(tmp_path, content, arrays, message):
    with pytest.raises(SourceError, match=message):
        read_arrays(image_file(tmp_path / "a.npz", content, **arrays))


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"_data_files": 3}', b"\xff" * 100])
def test_damaged_folders_of_datasets_are_named(tmp_path, name, content):
    WRITERS["folder"](tmp_path / "folder")
    assert len(read_records(tmp_path / "folder")) == len(RECORDS)
    (tmp_path / "folder" / name).write_bytes(content)
    with contextlib.suppress(SourceError):  # of dataset_info.json, {} is fine
        assert [dict(record) for _, record in read_records(tmp_path / "folder")] == RECORDS


def test_times_that_python_does_not_know_are_named(tmp_path):
    times = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"time": times}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        read_records(tmp_path / "a.parquet")


def test_an_array_in_place_of_arrays_is_named(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(SourceError, match=r"cannot be read as .npz"):
        read_arrays(tmp_path / "a.npz")


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match="There is no file"):
        read_records(tmp_path / "a.csv")


def test_folders_of_several_splits_are_told_apart(tmp_path):
    split = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict({"train": split, "dev": split}).save_to_disk(tmp_path / "both")
    with pytest.raises(SourceError, match="both/train"):
        read_records(tmp_path / "both")
    assert len(read_records(tmp_path / "both" / "dev")) == len(RECORDS)


def test_folders_that_datasets_did_not_save_are_refused(tmp_path):
    with pytest.raises(SourceError, match="not a folder that datasets saved"):
        read_records(tmp_path)


def test_folders_with_a_format_give_plain_values(tmp_path):
    data = datasets.Dataset.from_list([{"words": ["a"], "tags": [1]}])
    data.with_format("numpy", columns=["tags"]).save_to_disk(tmp_path / "formatted")
    assert read_records(tmp_path / "formatted")[0][1] == {"words": ["a"], "tags": [1]}


def named():
    """Numbers that stand for names, as `datasets` stores labels and tags; -1 is no label."""
    features = datasets.Features(
        {
            "verdict": datasets.ClassLabel(names=["good", "bad"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
            "nested": datasets.List(datasets.List(datasets.ClassLabel(names=["x", "y"]))),
            "count": datasets.Value("int64"),
        }
    )
    columns = {
        "verdict": [0, 1, -1, None],
        "tags": [[1, 0], [], None, [0]],
        "nested": [[[1], [0]], [], None, [[]]],
        "count": [0, 1, -1, 1],
    }
    return datasets.Dataset.from_dict(columns, features=features)


NAMED = {
    "folder": lambda path: named().save_to_disk(path),
    "a.parquet": lambda path: named().to_parquet(path),
}


@pytest.mark.parametrize("name", NAMED)
def test_labels_are_read_by_their_names(tmp_path, name):
    NAMED[name](tmp_path / name)
    records = [dict(record) for _, record in read_records(tmp_path / name)]
    assert records == [
        {"verdict": "good", "tags": ["B", "O"], "nested": [["y"], ["x"]], "count": 0},
        {"verdict": "bad", "tags": [], "nested": [], "count": 1},
        {"verdict": None, "tags": None, "nested": None, "count": -1},
        {"verdict": None, "tags": ["O"], "nested": [[]], "count": 1},
    ]


def test_categories_are_read_by_their_names(tmp_path):
    tags = pa.ListArray.from_arrays([0, 2, 3], pa.array(["B", "O", "B"]).dictionary_encode())
    verdicts = pa.array(["good", "bad"]).dictionary_encode()
    pq.write_table(pa.table({"verdict": verdicts, "tags": tags}), tmp_path / "a.parquet")
    assert [dict(record) for _, record in read_records(tmp_path / "a.parquet")] == [
        {"verdict": "good", "tags": ["B", "O"]},
        {"verdict": "bad", "tags": ["B"]},
    ]


def test_long_cells(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 200_000}\n")
    limit = csv.field_size_limit()
    assert len(read_records(tmp_path / "a.csv")[0][1]["text"]) == 200_000
    assert csv.field_size_limit() == limit


def test_numbers_and_lists_keep_their_types(tmp_path):
    record = {"tokens": ["a", "b"], "tags": [0, 1], "weight": 0.5}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    assert read_records(path)[0][1] == record
