"""`pydvl-datainf run`: from files to influences, as a user runs it."""

import numpy as np
import pytest

from commands import done, failed
from jobs import changed, unread, write_job
from pydvl_datainf import CausalLM, InfluenceRun
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    read_records,
)
from pydvl_datainf.jobfile import texts
from tuned import tokenizer, write_lines

pytestmark = pytest.mark.slow


def plain_scores(tuned, folder):
    """Without the command, whole batches, in float64."""
    files = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), dtype="float64")
    encoder = AnswerEncoder(tokenizer(), 512)
    train, test = (
        TokenSamples([encoder.encode(r) for r in read_records(folder / name)], 0).to_loader(50)
        for name in ("train.jsonl", "test.jsonl")
    )
    influence = InfluenceBuilder(files, CausalLM())().fit(train)
    return influence.training_influences(next(iter(test))).numpy()


def test_a_causal_language_model(tuned, folder):
    shown = done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    exact = plain_scores(tuned, folder)
    np.testing.assert_allclose(run.scores[...], exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    assert run.train_ids.tolist() == [f"sum {i}" for i in range(20)]
    assert run.test_ids.tolist() == ["sum 3", "sum 2", "sum 1", "sum 0"]
    assert run.metadata("train")["prompt"][3] == "What is 3 plus 9?"
    told = run.metadata("run")
    assert told["job"]["max_length"] == 512
    assert told["job"]["train"] == "train.jsonl"
    assert told["versions"]["transformers"]
    assert f"pydvl-datainf top {folder / 'out.zarr'}" in shown
    assert "What is 3 plus 9?" in done("top", folder / "out.zarr", "--test", "sum 1", "--k", 20)
    assert "batch_size: 8" in done("info", folder / "out.zarr", "--blocks")
    assert "layers.0.self_attn.q_proj · lora_A" in done("info", folder / "out.zarr", "--blocks")


def test_the_same_command_again_computes_nothing(finished):
    before = InfluenceRun(finished / "out.zarr").attrs
    done("run", finished / "job.yaml", "--no-progress")
    assert InfluenceRun(finished / "out.zarr").attrs == before


def test_another_job_is_refused_unless_told(finished):
    changed(finished, reduction="sum")
    assert "holds another run" in failed(1, "run", finished / "job.yaml", "--no-progress")
    done("run", finished / "job.yaml", "--no-progress", "--overwrite")
    assert InfluenceRun(finished / "out.zarr").metadata("run")["job"]["reduction"] == "sum"


def test_another_job_is_refused_before_anything_is_read(finished, monkeypatch):
    changed(finished, reduction="sum")
    monkeypatch.setattr(texts, "records_of", unread)
    monkeypatch.setattr(ModelFiles, "check", unread)
    message = failed(1, "run", finished / "job.yaml", "--no-progress")
    assert "holds another run" in message
    assert "What differs:\n  - job: reduction: 'mean' in the store, 'sum' now\n" in message
    assert "Choose another place (--out), or replace this one with --overwrite" in message


def test_the_result_of_no_job_is_refused(finished, monkeypatch):
    monkeypatch.setattr(InfluenceRun, "metadata", lambda run, side: {})
    message = failed(1, "run", finished / "job.yaml", "--no-progress")
    assert "What differs:\n  - it was made by other means than a job\n" in message


def test_what_changes_rounding_alone_does_not_stop_a_run_from_going_on(finished):
    changed(finished, max_tokens=50, device="auto")
    done("run", finished / "job.yaml", "--no-progress")
    changed(finished, max_length=200)
    message = failed(1, "run", finished / "job.yaml", "--no-progress")
    assert "job: max_length: 512 in the store, 200 now" in message
    assert "--overwrite" in message


def test_self_influences_are_added_to_a_finished_run(finished):
    before = InfluenceRun(finished / "out.zarr")
    assert not before.has_self_influence
    changed(finished, self_influence=True)
    done("run", finished / "job.yaml", "--no-progress")
    after = InfluenceRun(finished / "out.zarr")
    assert after.has_self_influence
    assert after.attrs["created"] == before.attrs["created"]


def test_options_say_all(tuned, folder):
    options = {
        "--task": "causal-lm",
        "--model": tuned.causal,
        "--adapter": tuned.causal_adapter,
        "--train": folder / "train.jsonl",
        "--test": folder / "test.jsonl",
        "--out": folder / "options.zarr",
    }
    flat = [part for option in options.items() for part in option]
    done("run", *flat, "--no-progress")
    assert InfluenceRun(folder / "options.zarr").is_complete


def test_workers_of_a_scheduler_and_processes_give_the_same(classification, cluster_of_two):
    changed(classification, rows="recompute")
    done("run", classification / "job.yaml", "--no-progress")
    changed(classification, rows="recompute", out="jobs.zarr")
    done("run", classification / "job.yaml", "--no-progress", "--jobs", 2)
    changed(classification, rows="recompute", out="workers.zarr")
    scheduler = cluster_of_two.scheduler_address
    done("run", classification / "job.yaml", "--no-progress", "--scheduler", scheduler)
    here, jobs, workers = (
        InfluenceRun(classification / f"{name}.zarr").scores[...]
        for name in ("out", "jobs", "workers")
    )
    np.testing.assert_allclose(jobs, here, rtol=1e-5, atol=1e-6 * np.abs(here).max())
    np.testing.assert_allclose(workers, here, rtol=1e-5, atol=1e-6 * np.abs(here).max())


def test_token_classification(tuned, tmp_path):
    records = [{"words": ["What", "is", "2"], "tags": [0, 1, i % 2]} for i in range(6)]
    write_lines(tmp_path / "data.jsonl", records)
    job = {
        "task": "token-classification",
        "model": str(tuned.tagger),
        "parameters": ["classifier.*"],
        "train": "data.jsonl",
        "test": "data.jsonl",
        "out": "out.zarr",
    }
    write_job(tmp_path, job)
    done("run", tmp_path / "job.yaml", "--no-progress")
    run = InfluenceRun(tmp_path / "out.zarr")
    assert list(run.damping) == ["classifier"]
    assert run.metadata("train")["text"][1] == "What/0 is/1 2/1"
    scores = run.scores[...]
    np.testing.assert_allclose(scores, scores.T, rtol=1e-4, atol=1e-5 * np.abs(scores).max())


@pytest.mark.usefixtures("fork_server")
def test_a_path_with_colons_is_a_path(folder):
    changed(folder, rows="zarr")
    done("run", folder / "job.yaml", "--no-progress", "--out", folder / "a::b.zarr")
    assert InfluenceRun(folder / "a::b.zarr").is_complete
    assert "Training samples 20" in done("info", folder / "a::b.zarr", "--check")
    done("run", folder / "job.yaml", "--no-progress", "--jobs", 2, "--out", folder / "c::d.zarr")
    one, two = (InfluenceRun(folder / name).scores[...] for name in ("a::b.zarr", "c::d.zarr"))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6 * np.abs(one).max())
