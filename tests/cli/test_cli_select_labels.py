"""`pydvl-datainf select --relabel`: the records that are left out, with labels to check beside."""

import csv
import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset

from commands import failed, printed
from jobs import changed, reviews
from pydvl_datainf import InfluenceRun
from pydvl_datainf.huggingface import read_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
BESIDE = ["suggested_label", "reason", "position", "suspicion"]
REASON = "among the 6 most suspicious (influence taken on average)"


def relabelled(folder, out, *options):
    changed(folder, self_influence=True)
    printed("run", folder / "job.yaml", "--no-progress")
    args = ("--drop-suspicious", "40%", "--relabel", "-o", folder / out)
    said = printed("select", folder / "out.zarr", *args, *options)
    assert "Labels to check, with suggestions" in said
    return InfluenceRun(folder / "out.zarr")


def suggestions(run, labels):
    """By position the other label, where the test samples that have it are harmed."""
    scores, of_test = run.scores[...], run.metadata("test")["label"]
    other = dict(zip(labels, labels[::-1], strict=True))
    given = run.metadata("train")["label"]
    harm = [scores[of_test == other[given[i]], i].mean() for i in range(len(given))]
    return [other[given[i]] if harm[i] < 0 else None for i in range(len(given))]


def dropped_of(run):
    suspicion = run.suspicion()
    return np.argsort(-suspicion, kind="stable")[:6].tolist(), suspicion.tolist()


def test_whole_rows_of_a_table_are_written_for_a_person_to_check(classification):
    rows = [
        f'{i:03},"It is {"not " * (i % 2)}2, plus {i}",{["good", "bad"][i % 2]},"said ""{i}"""'
        for i in range(15)
    ]
    header = "number,review,verdict,reason"
    (classification / "train.csv").write_text("\r\n".join([header, *rows]), newline="")
    run = relabelled(classification, "next.csv")
    positions, suspicion = dropped_of(run)
    expected = suggestions(run, ["good", "bad"])
    own = [row for _, row in read_records(classification / "train.csv")]
    with (classification / "next.relabel.csv").open(newline="") as file:
        text = file.read()
    told = list(csv.DictReader(text.splitlines()))
    assert [list(row) for row in told] == [
        [*own[0], "suggested_label", "selection_reason", "position", "suspicion"]
    ] * 6
    for row, i in zip(told, positions, strict=True):
        assert {name: row[name] for name in own[i]} == own[i]
        assert row["suggested_label"] == (expected[i] or "")
        assert row["selection_reason"] == REASON
        assert (int(row["position"]), float(row["suspicion"])) == (i, suspicion[i])
    assert len(set(expected)) == 3  # so that nothing above holds by chance
    assert all(any(line.startswith(row + ",") for row in rows) for line in text.splitlines()[1:])
    dropped = [
        json.loads(line)
        for line in (classification / "next.dropped.jsonl").read_text().splitlines()
    ]
    assert list(dropped[0])[:4] == ["reason", "id", "position", "suspicion"]
    assert [record["position"] for record in dropped] == positions


def test_a_checked_file_is_training_data_as_it_is(classification):
    relabelled(classification, "next.csv", "--overwrite")
    with (classification / "next.relabel.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["verdict"] = row.pop("suggested_label") or row["verdict"]
    with (classification / "checked.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    changed(classification, train="checked.csv", out="checked.zarr")
    printed("run", classification / "job.yaml", "--no-progress")
    labels = InfluenceRun(classification / "checked.zarr").metadata("train")["label"]
    assert labels.tolist() == [row["verdict"] for row in rows]


def test_labels_that_are_numbers_are_suggested_as_numbers(classification):
    number = {"good": 1, "bad": 0}
    lines = [
        json.dumps({"review": row["review"], "verdict": number[row["verdict"]], "more": {"n": [i]}})
        for i, row in enumerate(reviews(15))
    ]
    (classification / "train.jsonl").write_text("\n".join(lines))
    table = "".join(f"{row['review']},{number[row['verdict']]}\n" for row in reviews(3))
    (classification / "test.csv").write_text("review,verdict\n" + table)
    changed(classification, train="train.jsonl")
    run = relabelled(classification, "next.jsonl")
    positions, suspicion = dropped_of(run)
    expected = suggestions(run, ["0", "1"])
    told = [record for _, record in read_records(classification / "next.relabel.jsonl")]
    for record, i in zip(told, positions, strict=True):
        suggested = None if expected[i] is None else int(expected[i])
        beside = dict(zip(BESIDE, [suggested, REASON, i, suspicion[i]], strict=True))
        assert record == json.loads(lines[i]) | beside
    assert {type(record["suggested_label"]) for record in told} >= {int}


@pytest.mark.parametrize("out", ["next", "next.jsonl"])
def test_labels_of_datasets_are_suggested_by_name(classification, out, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = ["bad", "good"]
    data = Dataset.from_list(reviews(15)).cast_column("verdict", ClassLabel(names=names))
    (classification / "all").mkdir()
    data.to_parquet(classification / "all" / "train.parquet")
    changed(classification, train={"dataset": "all", "split": "train"})
    run = relabelled(classification, out)
    positions, _ = dropped_of(run)
    expected = suggestions(run, names)
    written = [r for _, r in read_records(classification / out.replace("next", "next.relabel"))]
    for record, i in zip(written, positions, strict=True):
        assert {name: record[name] for name in reviews(15)[i]} == reviews(15)[i]
        assert record["suggested_label"] == expected[i]
        assert record["position"] == i


def test_a_column_of_earlier_suggestions_is_not_taken_for_new_ones(classification):
    lines = (classification / "train.csv").read_text().splitlines()
    more = ["suggested_label", *["good"] * 15]
    text = "".join(f"{line},{label}\n" for line, label in zip(lines, more, strict=True))
    (classification / "train.csv").write_text(text)
    printed("run", classification / "job.yaml", "--no-progress")
    args = ("--keep-helpful", "9", "-o", classification / "next.csv")
    message = failed(1, "select", classification / "out.zarr", *args, "--relabel")
    assert "train.csv has a column 'suggested_label' already" in message
    assert list(classification.glob("next*")) == []
    printed("select", classification / "out.zarr", *args)


def test_a_file_of_labels_to_check_that_is_there_stays(classification):
    printed("run", classification / "job.yaml", "--no-progress")
    (classification / "next.relabel.csv").write_text("mine")
    args = ("--keep-helpful", "9", "--relabel", "-o", classification / "next.csv")
    message = failed(1, "select", classification / "out.zarr", *args)
    assert "next.relabel.csv is there" in message
    assert not (classification / "next.csv").exists()


@pytest.mark.parametrize(
    ("suggested", "written"),
    [
        (["7", "1", None], [7, 1, None]),
        (["odd", "1", None], ["odd", "1", None]),
    ],
)
def test_labels_that_no_record_has(classification, monkeypatch, suggested, written):
    lines = [json.dumps({"review": f"It is {i}", "verdict": i % 2}) + "\n" for i in range(9)]
    (classification / "train.jsonl").write_text("".join(lines))
    changed(classification, train="train.jsonl")
    printed("run", classification / "job.yaml", "--no-progress")
    monkeypatch.setattr(
        "pydvl_datainf.jobfile.selecting.suggest_labels", lambda run, positions: suggested
    )
    args = ("--keep-helpful", "6", "--relabel", "-o", classification / "next.jsonl")
    printed("select", classification / "out.zarr", *args)
    told = [record for _, record in read_records(classification / "next.relabel.jsonl")]
    assert [record["suggested_label"] for record in told] == written
