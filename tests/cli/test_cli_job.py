"""`pydvl-datainf run`: from files to influences, as a user runs it."""

import json
import re
from typing import ClassVar

import datasets
import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distributed import LocalCluster
from fsspec.implementations.memory import MemoryFileSystem
from transformers import BertConfig

import dense
from pydvl_datainf import CausalLM, InfluenceRun, ModelError, StoreError
from pydvl_datainf.cli import main
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    extra,
    read_records,
)
from pydvl_datainf.jobfile import texts
from pydvl_datainf.jobfile.schema import Job
from pydvl_datainf.runner import choices, tasks
from tuned import sums, tokenizer, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def done(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def failed(code, *arguments):
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture
def folder(tuned, tmp_path):
    """A job on a causal language model, with its data."""
    write_lines(tmp_path / "train.jsonl", sums(20))
    write_lines(tmp_path / "test.jsonl", sums(4)[::-1])
    job = {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "adapter": str(tuned.causal_adapter),
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "columns": {"id": "id"},
        "device": "cpu",
        "batch_size": 8,
        "max_tokens": 100,
    }
    write_job(tmp_path, job)
    return tmp_path


def write_job(folder, job):
    (folder / "job.yaml").write_text(json.dumps(job))  # JSON is YAML


def changed(folder, **fields):
    job = json.loads((folder / "job.yaml").read_text()) | fields
    write_job(folder, job)


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


def test_the_same_command_again_computes_nothing(folder):
    done("run", folder / "job.yaml", "--no-progress")
    before = InfluenceRun(folder / "out.zarr").attrs
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").attrs == before


def test_another_job_is_refused_unless_told(folder):
    done("run", folder / "job.yaml", "--no-progress")
    changed(folder, reduction="sum")
    assert "holds another run" in failed(1, "run", folder / "job.yaml", "--no-progress")
    done("run", folder / "job.yaml", "--no-progress", "--overwrite")
    assert InfluenceRun(folder / "out.zarr").metadata("run")["job"]["reduction"] == "sum"


def unread(*arguments):
    raise AssertionError("it was read")


def test_another_job_is_refused_before_anything_is_read(folder, monkeypatch):
    done("run", folder / "job.yaml", "--no-progress")
    changed(folder, reduction="sum")
    monkeypatch.setattr(texts, "read_records", unread)
    monkeypatch.setattr(ModelFiles, "check", unread)
    message = failed(1, "run", folder / "job.yaml", "--no-progress")
    assert "holds another run" in message
    assert "What differs:\n  - job: reduction: 'mean' in the store, 'sum' now\n" in message
    assert "--overwrite" in message


def test_the_result_of_no_job_is_refused(folder, monkeypatch):
    done("run", folder / "job.yaml", "--no-progress")
    monkeypatch.setattr(InfluenceRun, "metadata", lambda run, side: {})
    message = failed(1, "run", folder / "job.yaml", "--no-progress")
    assert "What differs:\n  - it was made by other means than a job\n" in message


@pytest.mark.parametrize("which", ["adapters", "adapters+heads"])
def test_a_model_without_its_adapter_is_refused_before_data_is_read(folder, monkeypatch, which):
    job = json.loads((folder / "job.yaml").read_text()) | {"parameters": which}
    del job["adapter"]
    write_job(folder, job)
    monkeypatch.setattr(texts, "read_records", unread)
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert f"'parameters' is {which}, and {job['model']} holds no adapter" in message


@pytest.mark.parametrize("field", ["model", "adapter"])
@pytest.mark.parametrize("name", ["./mistyped/bass", "mistyped/bass"])
def test_a_mistyped_folder_is_told_with_like_names(folder, field, name):
    for there in ("base", "other"):
        (folder / "mistyped" / there).mkdir(parents=True)
    changed(folder, **{field: name})
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    near = folder / "mistyped"
    assert message.startswith(f"Error: There is no folder {near}/bass. Did you mean {near}/base?")
    assert (" From the hub: Could not load the configuration" in message) == (name[0] != ".")


def test_a_mistyped_file_is_told_with_like_names(folder):
    changed(folder, train="trian.jsonl")
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert f"trian.jsonl. Did you mean {folder}/train.jsonl or " in message


def lines_on_a_terminal(text):
    return re.split(r"[\r\n]", text)


def test_an_error_does_not_stand_on_the_line_of_a_bar(folder, monkeypatch):
    job = (folder / "job.yaml").read_text()
    changed(folder, columns={"prompt": "question"})
    stderr = failed(2, "run", folder / "job.yaml")
    assert "tokenising test data" in stderr  # the premise
    assert any(line.startswith("Error: ") for line in lines_on_a_terminal(stderr))

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    (folder / "job.yaml").write_text(job)
    monkeypatch.setattr(tasks, "write_piece", fails)
    stderr = failed(1, "run", folder / "job.yaml")
    assert any(line.startswith("Error: [Errno 28]") for line in lines_on_a_terminal(stderr))


def test_what_a_job_left_unfinished_names_the_command(folder, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "write_piece", stopping)
    assert invoke("run", folder / "job.yaml", "--no-progress").exit_code == 130
    again = "un its job again (pydvl-datainf run JOB.yaml)"
    for command in (["top"], ["report", "-o", folder / "a.html"], ["info", "--check"]):
        message = failed(1, command[0], folder / "out.zarr", *command[1:])
        assert f"R{again} to go on." in message
        assert "run_influences" not in message
    assert f"r{again}" in done("info", folder / "out.zarr")


def test_a_failure_of_a_job_names_the_command(folder, monkeypatch):
    def fails(*arguments):
        raise StoreError("Damaged. Call run_influences again with the same arguments to go on.")

    monkeypatch.setattr(tasks, "write_piece", fails)
    message = failed(1, "run", folder / "job.yaml", "--no-progress")
    assert "Damaged. Run its job again (pydvl-datainf run JOB.yaml) to go on." in message


def test_what_changes_rounding_alone_does_not_stop_a_run_from_going_on(folder):
    done("run", folder / "job.yaml", "--no-progress")
    changed(folder, max_tokens=50, device="auto")
    done("run", folder / "job.yaml", "--no-progress")
    changed(folder, max_length=200)
    message = failed(1, "run", folder / "job.yaml", "--no-progress")
    assert "job: max_length: 512 in the store, 200 now" in message
    assert "--overwrite" in message


def test_self_influences_are_added_to_a_finished_run(folder):
    done("run", folder / "job.yaml", "--no-progress")
    before = InfluenceRun(folder / "out.zarr")
    assert not before.has_self_influence
    changed(folder, self_influence=True)
    done("run", folder / "job.yaml", "--no-progress")
    after = InfluenceRun(folder / "out.zarr")
    assert after.has_self_influence
    assert after.attrs["created"] == before.attrs["created"]


def test_ctrl_c_before_the_run(folder, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(texts, "read_records", stopping)
    assert invoke("run", folder / "job.yaml").exit_code == 130


def test_a_stopped_run_goes_on(folder, monkeypatch):
    changed(folder, rows="recompute")
    done("run", folder / "job.yaml", "--no-progress", "--out", folder / "whole.zarr")
    scores, calls = tasks.write_scores, []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scores(*arguments)

    monkeypatch.setattr(tasks, "write_scores", stopping)
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 130
    assert "the same command goes on; the pass over" in result.output
    assert not InfluenceRun(folder / "out.zarr").is_complete
    monkeypatch.undo()
    done("run", folder / "job.yaml", "--no-progress")
    whole, resumed = (InfluenceRun(folder / f"{name}.zarr") for name in ("whole", "out"))
    assert np.array_equal(whole.scores[...], resumed.scores[...])


@pytest.mark.parametrize(
    ("rows", "told", "again"),
    [
        ("memory", "are gone: those that are still needed, 20 at most, are computed again", 20),
        ("zarr", "the training gradients on disk are not computed again", 0),
    ],
)
def test_a_stop_tells_what_is_computed_again(folder, monkeypatch, rows, told, again):
    """And that is what is: beside the gradients of 4 + 4 test and 20 training samples."""

    def stopping(*arguments):
        raise KeyboardInterrupt

    changed(folder, rows=rows)
    monkeypatch.setattr(tasks, "write_piece", stopping)
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 130
    assert told in result.output
    monkeypatch.undo()
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == 28 + again


def test_a_stop_before_there_is_a_run_says_so(folder, monkeypatch):
    def stopping(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "describe", stopping)
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 130
    assert "before there was anything of the result" in result.output


def test_a_dry_run_foretells_that_many_gradients_go_to_the_disk(folder, monkeypatch):
    monkeypatch.setattr(choices, "MOST_IN_MEMORY", 19)
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert "Rows kept on disk, in half precision" in shown
    # 2·20·256 of rows and 4·20·4 of scores; 8·4·256 of vectors and 8·4·4·20 of parts of scores.
    assert "Disk 10.31 kiB, and as much as 10.50 kiB for a time" in shown
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").plan.rows == "zarr"


def test_a_dry_run_tells_and_writes_nothing(folder):
    before = sorted(folder.iterdir())
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert sorted(folder.iterdir()) == before
    lengths = [len(tokenizer()(f"{r['prompt']}{r['answer']}</s>")["input_ids"]) for r in sums(20)]
    for told in (
        "Training samples 20",
        f"Training tokens {sum(lengths):,}; longest {max(lengths)}",
        "256, in 8 blocks",
        "Rows kept in memory",
        "Tiles of scores 1 x 3, of 4 test by 8 training samples",
        "Gradients 28, of",
        "tokens a second",
    ):
        assert told in shown
    assert re.search(r"Together about [\d.]+ s in one process", shown)


@pytest.mark.parametrize(("rows", "gradients"), [("zarr", 20 + 4), ("recompute", 3 * 20 + 4)])
@pytest.mark.parametrize("exact_sample", [0, 256, "auto"])
def test_a_dry_run_foretells_the_gradients(folder, rows, gradients, exact_sample):
    changed(folder, rows=rows, exact_sample=exact_sample)
    compared = 4 + (20 if rows == "recompute" else 0)  # fewer than are asked for
    gradients += compared if exact_sample else 0
    assert f"Gradients {gradients}, of" in done(
        "run", folder / "job.yaml", "--dry-run", "--no-progress"
    )
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == gradients


MATRICES = {
    "datainf": dense.datainf_matrix,
    "exact": dense.exact_matrix,
    "hessian-free": lambda rows, λ: torch.eye(rows.shape[1], dtype=rows.dtype),
    "scaled-hessian-free": dense.scaled_identity,
}


@pytest.fixture(scope="module")
def plain_rows(tuned, tmp_path_factory):
    """For each side the gradients of each block, in float64."""
    files = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter), dtype="float64")
    influence, encoder = InfluenceBuilder(files, CausalLM())(), AnswerEncoder(tokenizer(), 512)
    folder = tmp_path_factory.mktemp("rows")
    samples = {
        side: read_records(write_lines(folder / f"{side}.jsonl", records))
        for side, records in (("train", sums(20)), ("test", sums(4)[::-1]))
    }
    batches = {
        side: TokenSamples([encoder.encode(r) for r in records], 0).to_loader(50)
        for side, records in samples.items()
    }
    return {side: influence.loss_gradients_by_block(next(iter(b))) for side, b in batches.items()}


@pytest.mark.parametrize(("method", "matrix"), MATRICES.items(), ids=MATRICES)
def test_a_method_by_name(folder, plain_rows, method, matrix):
    done("run", folder / "job.yaml", "--no-progress", "--method", method)
    run = InfluenceRun(folder / "out.zarr")
    V, G = plain_rows["test"], plain_rows["train"]
    damping = {block: dense.automatic_damping(g) for block, g in G.items()}
    exact = dense.influences(V, G, G, damping, matrix).numpy()
    np.testing.assert_allclose(run.scores[...], exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    for other in MATRICES.keys() - {method}:  # the negative control
        wrong = dense.influences(V, G, G, damping, MATRICES[other]).numpy()
        assert np.abs(run.scores[...] - wrong).max() > 1e-2 * np.abs(wrong).max()
    assert run.metadata("run")["job"]["method"] == method
    is_compared = method in ("datainf", "scaled-hessian-free")
    assert (run.approximation_error is not None) is is_compared
    message = failed(1, "run", folder / "job.yaml", "--no-progress", "--method", other)
    assert "method: " in message


def test_the_error_of_a_job_is_that_of_the_dense_formula(folder, plain_rows):
    changed(folder, exact_sample=1000)
    done("run", folder / "job.yaml", "--no-progress")
    found = InfluenceRun(folder / "out.zarr").approximation_error
    assert (found.n, found.m) == (20, 4)
    V, G = plain_rows["test"], plain_rows["train"]
    for block, error in zip(found.blocks, found.errors, strict=True):
        λ = dense.automatic_damping(G[block])
        A, E = (V[block] @ m(G[block], λ) for m in (dense.datainf_matrix, dense.exact_matrix))
        assert error == pytest.approx(float((A - E).norm() / E.norm()), rel=1e-3)


# Passes over the training samples, and whether four test samples are compared with exact
TAKEN = {
    ("datainf", "auto"): 20 + 4 + 4,
    ("exact", "auto"): 20 + 4,
    ("hessian-free", "recompute"): 20 + 4,
    ("scaled-hessian-free", "recompute"): 2 * 20 + 4 + 4 + 20,
}


@pytest.mark.parametrize(("method", "rows"), TAKEN)
def test_a_dry_run_foretells_the_gradients_of_each_method(folder, method, rows):
    changed(folder, method=method, rows=rows)
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert f"Gradients {TAKEN[method, rows]}, of" in shown
    assert not (folder / "out.zarr").exists()
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == TAKEN[method, rows]


def test_the_exact_inverse_does_not_compute_rows_again(folder):
    changed(folder, rows="recompute")
    for options in ((), ("--dry-run",)):
        message = failed(2, "run", folder / "job.yaml", "--method", "exact", *options)
        assert "let 'rows' be zarr or memory" in " ".join(message.split())


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


def reviews(count):
    return [
        {"review": f"It is {'not ' * (i % 2)}2 plus {i}", "verdict": ["good", "bad"][i % 2]}
        for i in range(count)
    ]


def write_csv(path, records):
    lines = "".join(f"{record['review']},{record['verdict']}\n" for record in records)
    path.write_text("review,verdict\n" + lines)


@pytest.fixture
def classification(tuned, tmp_path):
    write_csv(tmp_path / "train.csv", reviews(15))
    write_csv(tmp_path / "test.csv", reviews(3))
    job = {
        "task": "sequence-classification",
        "model": str(tuned.encoder),
        "adapter": str(tuned.classes_adapter),
        "labels": ["bad", "good"],
        "train": "train.csv",
        "test": "test.csv",
        "columns": {"text": "review", "label": "verdict"},
        "out": "out.zarr",
        "device": "cpu",
        "batch_size": 4,
    }
    write_job(tmp_path, job)
    return tmp_path


def test_the_trained_head_is_left_out_or_in_and_the_result_says_so(classification):
    for parameters, is_in, count in (("adapters", False, 8), ("adapters+heads", True, 9)):
        changed(classification, parameters=parameters, out=f"{parameters}.zarr")
        done("run", classification / "job.yaml", "--no-progress")
        run = InfluenceRun(classification / f"{parameters}.zarr")
        told = run.metadata("run")
        assert "classifier" in told["heads trained with the adapter"]
        assert told["heads take part"] is is_in
        assert len(run.damping) == count
        assert run.metadata("test")["label"].tolist() == ["good", "bad", "good"]
    shown = done("run", classification / "job.yaml", "--dry-run", "--no-progress")
    assert "Heads classifier, score take part" in shown


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_labels_that_are_stored_as_numbers_go_by_their_names(classification, kind):
    done("run", classification / "job.yaml", "--no-progress")
    verdict = datasets.ClassLabel(names=["good", "bad"])  # the job has them the other way round
    for side, count in (("train", 15), ("test", 3)):
        data = datasets.Dataset.from_list(reviews(count)).cast_column("verdict", verdict)
        data = data.add_column("shown", data["verdict"]).cast_column("shown", verdict)
        data.save_to_disk(classification / f"{side}.folder")
        data.to_parquet(classification / f"{side}.parquet")
    columns = {"text": "review", "label": "verdict", "show": ["shown"]}
    files = {side: f"{side}.{kind}" for side in ("train", "test")}
    changed(classification, columns=columns, out="named.zarr", **files)
    done("run", classification / "job.yaml", "--no-progress")
    text, named = (InfluenceRun(classification / f"{name}.zarr") for name in ("out", "named"))
    np.testing.assert_array_equal(named.scores[...], text.scores[...])
    for name in ("label", "shown"):
        assert named.metadata("test")[name].tolist() == ["good", "bad", "good"]
    changed(classification, labels=["awful", "good"], out="unknown.zarr")
    message = failed(2, "run", classification / "job.yaml", "--no-progress")
    assert "row 1: label 'bad' must be" in " ".join(message.split())


@pytest.mark.parametrize(
    ("id2label", "label2id"),
    [
        ({0: "bad", 1: "good"}, None),
        ({0: "LABEL_0", 1: "LABEL_1"}, {"bad": 0, "good": 1}),
        ({0: "bad", 1: "good"}, {"bad": 0, "good": 1}),
    ],
)
def test_names_of_outputs_from_either_table(id2label, label2id):
    config = BertConfig(id2label=id2label, label2id=label2id)
    job = Job(task="sequence-classification", model="m", train="t", test="t", out="o")
    encoder = texts.encoder_of(job, tokenizer(), config)
    assert [encoder.label_ids[name] for name in ("bad", "good")] == [0, 1]


def test_tables_of_outputs_that_contradict_each_other_are_refused():
    config = BertConfig(id2label={0: "bad", 1: "good"}, label2id={"bad": 1, "good": 0})
    job = Job(task="token-classification", model="m", train="t", test="t", out="o")
    with pytest.raises(ModelError, match=r"contradicts itself: id2label .*config\.json"):
        texts.encoder_of(job, tokenizer(), config)


def test_workers_of_a_scheduler_and_processes_give_the_same(classification):
    changed(classification, rows="recompute")
    done("run", classification / "job.yaml", "--no-progress")
    changed(classification, rows="recompute", out="jobs.zarr")
    done("run", classification / "job.yaml", "--no-progress", "--jobs", 2)
    changed(classification, rows="recompute", out="workers.zarr")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        scheduler = cluster.scheduler_address
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


# What cannot be done


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "causal"}, r"job.yaml, line 1: 'task' must be"),
        (
            {"method": "lissa"},
            "'method' must be 'datainf', 'exact', 'ekfac', 'hessian-free' or 'scaled-hessian-free'",
        ),
        ({"train": "nowhere.jsonl"}, "no file or folder .*nowhere.jsonl"),
        ({"columns": {"prompt": "question"}}, "line 1: no column 'question'; there are id, prompt"),
        (
            {"columns": {"id": "prompt", "show": ["answer"]}},
            "'answer', which the result already has",
        ),
        ({"columns": {"show": ["tokens"]}}, "'tokens', which the result already has"),
        ({"columns": {"show": ["my column"]}}, "cannot have as a name"),
        ({"columns": {"id": "same"}}, "no column 'same'"),
        ({"memory": "lots"}, 'line 1: .memory. must be .*an amount such as "2GiB"'),
        ({"out": "memory://x"}, "a place that lasts"),
        ({"max_length": 3}, "test.jsonl, line 1: no token has a label within max_length=3"),
        ({"model": "./nowhere"}, "There is no folder .*nowhere"),
        ({"adapter": "./nowhere"}, "There is no folder .*nowhere"),
        ({"chat": False, "columns": {"messages": "prompt"}}, "must be a list of messages"),
    ],
)
def test_invalid_jobs_begin_nothing(folder, fields, message):
    changed(folder, **fields)
    before = sorted(folder.iterdir())
    assert re.search(message, failed(2, "run", folder / "job.yaml", "--no-progress"))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "\ud800"}, "train.jsonl, line 21: column 'id' is not text"),
        ({"prompt": "\udc80"}, "train.jsonl, line 21: column 'prompt' is not text"),
        ({"extra": "\ud800"}, "train.jsonl, line 21: column 'extra' is not text"),
        ({"id": 10**20}, "train.jsonl, line 21: column 'id' holds 1000"),
        ({"id": float("nan")}, "line 21: column 'id' holds nan; it must be all texts or all num"),
        ({"id": True}, "line 21: column 'id' holds True; it must be all texts or all numbers"),
        (
            {"extra": True},
            "line 21: column 'extra' holds True; .*all texts or all numbers or all t",
        ),
        ({"extra": 2**64}, "line 21: column 'extra' holds a number beyond 64 bits"),
    ],
)
def test_hostile_records_begin_nothing(folder, record, message):
    records = [{**one, "extra": 1} for one in sums(20)]
    last = {"id": "last", "prompt": "What is 3?", "answer": " It is 3.", "extra": 1}
    write_lines(folder / "test.jsonl", records[:3])
    write_lines(folder / "train.jsonl", [*records, last | record])
    changed(folder, columns={"id": "id", "show": ["extra"]})
    before = sorted(folder.iterdir())
    assert re.search(message, failed(2, "run", folder / "job.yaml", "--no-progress"))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("foo://bar", "foo://bar cannot be opened: Protocol not known: foo"),
        ("reference://x", "reference://x cannot be opened: .*missing 1 required"),
        ("nobucket://bucket/x", "Writing to .* failed: The bucket does not exist.* mend the cause"),
        ("train.jsonl", "train.jsonl is a file"),
        ("train.jsonl/x", "train.jsonl is a file"),
        ("/proc/x", "/proc/x cannot be written: /proc takes no files"),
        ("x" * 300, "File name too long"),
    ],
)
def test_places_that_take_no_result_are_told_with_the_true_reason(folder, out, message):
    fsspec.register_implementation("nobucket", NoBucket, clobber=True)
    changed(folder, out=out)
    before = sorted(folder.iterdir())
    told = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert re.search(message, told)
    assert "make room" not in told
    assert "never replaced" not in told
    assert "Another run" not in told
    assert sorted(folder.iterdir()) == before


class NoBucket(MemoryFileSystem):
    """Answers as an object store does whose bucket is not there."""

    protocol = "nobucket"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def pipe_file(self, path, value, **options):
        raise FileNotFoundError("The bucket does not exist")


def test_a_path_with_colons_is_a_path(folder):
    changed(folder, rows="zarr")
    done("run", folder / "job.yaml", "--no-progress", "--out", folder / "a::b.zarr")
    assert InfluenceRun(folder / "a::b.zarr").is_complete
    assert "Training samples 20" in done("info", folder / "a::b.zarr", "--check")
    done("run", folder / "job.yaml", "--no-progress", "--jobs", 2, "--out", folder / "c::d.zarr")
    one, two = (InfluenceRun(folder / name).scores[...] for name in ("a::b.zarr", "c::d.zarr"))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6 * np.abs(one).max())


def test_too_little_memory_begins_nothing(folder):
    changed(folder, memory=1)
    assert "memory are too few" in failed(2, "run", folder / "job.yaml", "--no-progress")
    assert not (folder / "out.zarr").exists()


def test_an_unknown_method_is_told_with_those_that_there_are(folder):
    message = failed(2, "run", folder / "job.yaml", "--no-progress", "--method", "lissa")
    assert (
        "option --method: 'method' must be 'datainf', 'exact', 'ekfac', 'hessian-free' or"
        in message
    )
    assert not (folder / "out.zarr").exists()


def test_ids_that_are_there_twice_are_named(folder):
    write_lines(folder / "test.jsonl", [*sums(2), sums(1)[0]])
    message = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert "test.jsonl, line 3: the id 'sum 0' is there twice" in message


@pytest.mark.parametrize("shown", [["a", 1], [{"a": 1}, {"a": 2}], ["a", None]])
def test_columns_that_cannot_be_stored_are_named(folder, shown):
    records = [{**record, "extra": value} for record, value in zip(sums(2), shown, strict=True)]
    write_lines(folder / "test.jsonl", records)
    write_lines(folder / "train.jsonl", records)
    changed(folder, columns={"show": ["extra"]})
    assert "column 'extra'" in failed(2, "run", folder / "job.yaml", "--no-progress")


def test_folders_that_hold_something_else_are_refused_before_anything(folder):
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr" / "notes.txt").write_text("mine")
    for options in ((), ("--dry-run",), ("--overwrite",)):
        message = failed(2, "run", folder / "job.yaml", *options)
        assert "never replaced" in message.replace("\n", " ")
    assert [path.name for path in (folder / "out.zarr").iterdir()] == ["notes.txt"]


def test_a_model_that_cannot_be_used_is_told(folder):
    changed(folder, parameters=["*.nothing"])
    assert "No parameter fits" in failed(2, "run", folder / "job.yaml", "--no-progress")


def test_a_run_that_fails_keeps_what_it_has(folder, monkeypatch):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tasks, "write_piece", fails)
    assert "No space left" in failed(1, "run", folder / "job.yaml", "--no-progress")
    monkeypatch.undo()
    assert InfluenceRun(folder / "out.zarr").attrs["gradients"] == 24
    done("run", folder / "job.yaml", "--no-progress")
    assert InfluenceRun(folder / "out.zarr").is_complete


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    monkeypatch.setattr(extra, "import_module", missing)
    message = failed(1, "run", folder / "job.yaml")
    assert "pydantic is not installed: pip install 'pydvl-datainf[hf]'" in message


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_is_broken_inside_is_not_called_missing(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'inner'", name="inner")

    monkeypatch.setattr(extra, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="inner"):
        extra.imported("pydantic")


def test_a_slow_tokenizer_is_refused(folder, monkeypatch):
    class Slow:
        is_fast = False
        pad_token_id = 0
        eos_token_id = None

    monkeypatch.setattr(texts.ModelFiles, "tokenizer", lambda files: Slow())
    assert "needs a fast tokenizer" in failed(2, "run", folder / "job.yaml", "--no-progress")
