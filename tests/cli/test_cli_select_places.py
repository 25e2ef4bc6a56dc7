"""`pydvl-datainf select` and `top` of awkward data: nothing is lost, and no number is another's."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_from_disk

from commands import failed, printed
from jobs import changed
from pydvl_datainf import InfluenceRun
from tuned import sums, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def run(folder, **fields):
    changed(folder, exact_sample=0, **fields)
    printed("run", folder / "job.yaml", "--no-progress")
    return InfluenceRun(folder / "out.zarr")


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_only_folders_of_datasets_are_replaced(folder, monkeypatch):
    Dataset.from_list(sums(9)).save_to_disk(str(folder / "train"))
    made = run(folder, train="train")
    args = ("select", made.store, "--keep-helpful", "3", "--overwrite", "-o")
    others = "holds other things than a data set that datasets saved"
    for place in (folder / "out.zarr", folder):
        assert others in failed(1, *args, place)
    assert "is the data itself" in failed(1, *args, folder / "train" / "next")
    monkeypatch.chdir(folder / "train")
    assert "Choose another name" in failed(1, *args, ".", "--job", folder / "job.yaml")
    printed("info", made.store, "--check")
    assert len(load_from_disk(str(folder / "train"))) == 9
    for place in ("next", "absent/../next"):  # the second of which replaces what the first wrote
        printed(*args, folder / place)
    assert len(lines_of(folder / "next.dropped.jsonl")) == 6
    assert len(load_from_disk(str(folder / "next"))) == 3


def test_training_data_with_the_name_of_the_list_of_what_is_left_out_stays(folder):
    data = folder / "next.dropped.jsonl"
    before = (folder / "train.jsonl").rename(data).read_bytes()
    made = run(folder, train=data.name)
    args = ("select", made.store, "--keep-helpful", "3", "--overwrite", "-o")
    assert "is the data itself" in failed(1, *args, folder / "next.jsonl")
    (folder / "other.dropped.jsonl").symlink_to(data)
    assert "is the data itself" in failed(1, *args, folder / "other.jsonl")
    assert data.read_bytes() == before
    (folder / "third.dropped.jsonl").mkdir()
    assert "third.dropped.jsonl is there" in failed(1, *args, folder / "third.jsonl")
    assert not [path for path in folder.glob("*.jsonl") if path.stem in ("next", "other", "third")]


def test_columns_with_names_of_ours_take_no_number_s_place(folder):
    names = ["rank", "influence", "position", "reason", "mean_influence"]
    theirs = {name: i for i, name in enumerate(names, 100)}
    write_lines(folder / "train.jsonl", [{**record, **theirs} for record in sums(9)])
    made = run(folder, columns={"id": "id", "show_train": names})
    args = ("top", made.store, "--test", "sum 1", "--k", "9", "--most", "helpful")
    found = json.loads(printed(*args, "--format", "json"))
    scores = made.scores[2]
    order = np.argsort(-scores)
    assert [record["rank"] for record in found] == list(range(1, 10))
    assert [record["id"] for record in found] == [f"sum {i}" for i in order]
    assert np.array_equal(np.float32([r["influence"] for r in found]), scores[order])
    assert {record["sample_rank"] for record in found} == {100}
    assert {record["position"] for record in found} == {102}
    printed("select", made.store, "--keep-helpful", "3", "-o", folder / "next.jsonl")
    dropped = lines_of(folder / "next.dropped.jsonl")
    mean = made.mean_influence()
    worst = np.argsort(mean)[:6]
    assert [record["position"] for record in dropped] == worst.tolist()
    assert [record["mean_influence"] for record in dropped] == mean[worst].tolist()
    assert dropped[0]["reason"] == "not among the 3 most helpful on average"
    assert dropped[0] | {f"sample_{name}": theirs[name] for name in names[2:]} == dropped[0]


def test_numbers_that_are_none_are_as_they_were(folder):
    records = [{**record, "grade": [1.5, float("nan")][i % 2]} for i, record in enumerate(sums(9))]
    write_lines(folder / "train.jsonl", records)
    made = run(folder, columns={"id": "id", "show_train": ["grade"]})
    args = ("select", made.store, "--keep-helpful", "3", "-o", folder / "next.jsonl")
    printed(*args)
    records[3]["grade"] = 2.5
    write_lines(folder / "train.jsonl", records)
    message = failed(1, *args, "--overwrite")
    assert "line 4: 'grade' is " in message
    assert "1 samples of" in message
