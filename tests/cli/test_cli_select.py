"""`pydvl-datainf select`: from a run to the training file of the next one."""

import json

import numpy as np
import pytest

from commands import failed, printed
from jobs import changed
from pydvl_datainf import InfluenceRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def made(finished):
    """The run of a job on prompts and answers, with ids."""
    return InfluenceRun(finished / "out.zarr")


def test_the_next_training_file_and_what_was_left_out(folder, made):
    mean = made.mean_influence()
    harming = int((mean < 0).sum())
    assert 0 < harming < 20
    worst = np.argsort(mean, kind="stable")[:harming].tolist()
    before = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    said = printed("select", made.store, "--drop-harmful", "19", "-o", folder / "next.jsonl")
    kept = "".join(line for i, line in enumerate(before) if i not in worst)
    assert (folder / "next.jsonl").read_text() == kept
    dropped = lines_of(folder / "next.dropped.jsonl")
    assert [record["position"] for record in dropped] == worst
    assert [record["id"] for record in dropped] == [f"sum {i}" for i in worst]
    assert [record["mean_influence"] for record in dropped] == mean[worst].tolist()
    assert dropped[0]["reason"] == f"among the {harming} most harmful on average"
    assert dropped[0]["prompt"] == json.loads(before[worst[0]])["prompt"]
    assert f"Kept {20 - harming} of 20 training samples: {folder / 'next.jsonl'}" in said
    assert "No more of them harm" in said
    assert f"train: {folder / 'next.jsonl'}, adapter: what was tuned on it" in said


def test_the_next_file_makes_a_run(folder, made):
    printed("select", made.store, "--keep-helpful", "50%", "-o", folder / "next.jsonl")
    changed(folder, train="next.jsonl", out="next.zarr")
    printed("run", folder / "job.yaml", "--no-progress")
    best = np.argsort(-made.mean_influence(), kind="stable")[:10]
    assert InfluenceRun(folder / "next.zarr").train_ids.tolist() == [
        f"sum {i}" for i in sorted(best.tolist())
    ]


def test_existing_files_stay(folder, made):
    (folder / "next.dropped.jsonl").write_text("mine")
    args = ("select", made.store, "--drop-harmful", "1", "-o", folder / "next.jsonl")
    assert "next.dropped.jsonl is there" in failed(1, *args)
    assert not (folder / "next.jsonl").exists()
    assert "replace it with --overwrite" in failed(1, *args)
    printed(*args, "--overwrite")
    assert lines_of(folder / "next.dropped.jsonl")
    args = (*args[:-1], folder / "train.jsonl", "--overwrite")
    assert "is the data itself" in failed(1, *args)


def test_training_data_that_changed_is_refused(folder, made):
    path, args = folder / "train.jsonl", ("--drop-harmful", "1", "-o", folder / "next.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert "holds 19 samples, and" in failed(1, "select", made.store, *args)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    message = failed(1, "select", made.store, *args)
    assert "line 1: 'id' is 'sum 1', and was 'sum 0' when" in message
    assert "2 samples of" in message
    path.write_text("".join(lines).replace("is 7 plus", "is 8 plus"))
    assert "line 8: 'prompt' is 'What is 8 plus 49?', and" in failed(1, "select", made.store, *args)
    assert list(folder.glob("next*")) == []


def test_the_job_is_found_beside_the_run_here_or_by_its_name(folder, made, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "out.zarr").rename(elsewhere / "moved.zarr")
    args = ("select", elsewhere / "moved.zarr", "--drop-harmful", "1", "-o", "next.jsonl")
    monkeypatch.chdir(elsewhere)
    assert "is neither in the current folder nor in that of the run" in failed(1, *args)
    monkeypatch.chdir(folder)
    printed(*args)
    monkeypatch.chdir(elsewhere)
    printed(*args, "--job", folder / "job.yaml")
    assert (elsewhere / "next.jsonl").read_text() == (folder / "next.jsonl").read_text()
    changed(folder, max_length=100)
    message = failed(1, *args, "--job", folder / "job.yaml", "--overwrite")
    assert "is not of the job in" in message
    assert "max_length: 512 in the store, 100 now" in message


def test_what_does_not_go_together_is_refused(folder, made):
    out = ("-o", folder / "next.jsonl")
    assert "Give one of" in failed(2, "select", made.store, *out)
    assert "neither a number" in failed(2, "select", made.store, "--drop-harmful", "some", *out)
    assert "got 21" in failed(2, "select", made.store, "--drop-harmful", "21", *out)
    message = failed(1, "select", made.store, "--drop-harmful", "1", "--relabel", *out)
    assert "Labels are suggested for sequence-classification, not causal-lm" in message
    message = failed(1, "select", made.store, "--drop-suspicious", "1", *out)
    assert "has no self-influences. Run its job again (pydvl-datainf run JOB.yaml)" in message


def test_unquoted_tables_are_cut_at_their_lines(folder):
    rows = [f'He said "{i}\tmore {i}\n' for i in range(12)]
    (folder / "train.tsv").write_text("".join(["prompt\tanswer\n", *rows]))
    changed(folder, train="train.tsv", quoting="none", columns={})
    printed("run", folder / "job.yaml", "--no-progress")
    best = np.argsort(-InfluenceRun(folder / "out.zarr").mean_influence(), kind="stable")[:3]
    printed("select", folder / "out.zarr", "--keep-helpful", "3", "-o", folder / "next.tsv")
    kept = "".join(rows[i] for i in sorted(best.tolist()))
    assert (folder / "next.tsv").read_text() == "prompt\tanswer\n" + kept


def test_a_run_that_left_samples_out_says_what_to_do(folder):
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps({"id": "long", "prompt": "plus " * 60, "answer": "x"}) + "\n")
    changed(folder, on_unusable="skip", max_length=40)
    printed("run", folder / "job.yaml", "--no-progress")
    args = ("select", folder / "out.zarr", "--drop-harmful", "1", "-o", folder / "next.jsonl")
    message = failed(1, *args)
    assert "What a job leaves out (on_unusable: skip) has to be taken out of the data" in message
