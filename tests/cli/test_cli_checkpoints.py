"""`pydvl-datainf run` on several checkpoints: a run of each, and their sum."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml

from commands import invoke
from jobs import WEIGHTS, another, write_checkpoints_job, write_job
from pydvl_datainf import CausalLM, InfluenceRun, JobError, SequenceClassification
from pydvl_datainf.huggingface import (
    AnswerEncoder,
    ClassEncoder,
    InfluenceBuilder,
    ModelFiles,
    TokenSamples,
    read_records,
)
from pydvl_datainf.jobfile import checkpoints as checkpoints_module
from pydvl_datainf.jobfile.preparation import Prepared
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.results.store import Store
from tuned import sums, tokenizer, write_lines

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def done(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def failed(code, *arguments):
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split())


@pytest.fixture
def folder(tuned, tmp_path):
    """A job on two adapters of a causal language model."""
    return write_checkpoints_job(tmp_path, tuned, sums(3)[::-1], self_influence=True)


def changed(folder, **fields):
    job = json.loads((folder / "job.yaml").read_text()) | fields
    write_job(folder, {name: value for name, value in job.items() if value is not None})


def run(folder, *options):
    return "run", folder / "job.yaml", "--no-progress", *options


def plain_scores(folder, task, model, adapter, encoder, objective, parameters="adapters"):
    """Without the command, whole batches, in float64."""
    files = ModelFiles(task, str(model), adapter, dtype="float64")
    train, test = (
        TokenSamples([encoder.encode(r) for r in read_records(folder / name)], 0).to_loader(50)
        for name in ("train.jsonl", "test.jsonl")
    )
    influence = InfluenceBuilder(files, objective, parameters=parameters)().fit(train)
    return influence.training_influences(next(iter(test))).numpy()


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def content(store):
    files = (file for file in store.rglob("*") if file.is_file() and file.name.isdigit())
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


@slow
def test_adapters_are_added(tuned, folder):
    told = done("run", folder / "job.yaml")
    assert "Checkpoint 1 of 2: 'a'" in told
    assert "Checkpoint 2 of 2: './b'" in told
    total = InfluenceRun(folder / "out.zarr")
    exact = [
        plain_scores(
            folder,
            "causal-lm",
            tuned.causal,
            str(folder / name),
            AnswerEncoder(tokenizer(), 512),
            CausalLM(),
        )
        for name in ("a", "b")
    ]
    close(total.scores[...], 0.5 * exact[0] + 2 * exact[1])
    with pytest.raises(AssertionError):  # negative control: the checkpoints differ
        close(total.scores[...], 2.5 * exact[0])
    runs = [InfluenceRun(folder / f"out.zarr.parts/{k}.zarr") for k in (1, 2)]
    assert [part.place for part in total.parts] == [str(r.store) for r in runs]
    assert [part.weight for part in total.parts] == WEIGHTS
    assert [r.metadata("run")["job"]["adapter"] for r in runs] == ["a", "./b"]
    close(total.self_influence(), 0.5 * runs[0].self_influence() + 2 * runs[1].self_influence())
    job = total.metadata("run")["job"]
    assert (job["checkpoints"], job["weights"]) == (["a", "./b"], WEIGHTS)
    best = total.scores[...][0].argmax()
    assert f"sum {best}" in done("top", folder / "out.zarr", "--test", "sum 2", "--k", 1)
    assert "Run 2, x 2" in done("info", folder / "out.zarr", "--check")
    done("report", folder / "out.zarr", "-o", folder / "report.html")

    before = content(folder)
    done(*run(folder))  # computes nothing
    assert content(folder) == before


@slow
def test_it_goes_on_wherever_it_was_stopped(folder, monkeypatch):
    done(*run(folder))
    whole = content(folder / "out.zarr")
    shutil.rmtree(folder / "out.zarr")
    shutil.rmtree(folder / "out.zarr.parts")
    write, left = Store.write, []

    def write_or_stop(self, name, *arguments):
        if (self.path.name, name) == left[0]:
            raise KeyboardInterrupt
        write(self, name, *arguments)

    for place, name in (
        ("1.zarr", "scores"),
        ("2.zarr", "mean_influence"),
        ("out.zarr", "scores"),
    ):
        left[:] = [(place, name)]
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", write_or_stop)
            result = invoke(*run(folder))
        assert result.exit_code == 130
        assert "the same command goes on" in result.output
        assert (folder / "out.zarr.parts" / "2.zarr").exists() == (place != "1.zarr")
    assert "computed again" not in result.output  # of a sum nothing is
    created = InfluenceRun(folder / "out.zarr.parts/1.zarr").attrs["created"]
    done(*run(folder, "--overwrite"))
    assert content(folder / "out.zarr") == whole
    assert InfluenceRun(folder / "out.zarr.parts/1.zarr").attrs["created"] == created


@slow
def test_another_checkpoint_is_added_at_no_other_cost(folder):
    done(*run(folder))
    parts = content(folder / "out.zarr.parts")
    changed(folder, checkpoints=["a", "./b", "c"], weights=[1.0, 1.0, 1.0])
    another(folder / "b", folder / "c", "adapter_model.safetensors")
    told = failed(1, *run(folder))
    assert "holds another run" in told
    assert "checkpoints" in told
    done(*run(folder, "--overwrite"))
    runs = [InfluenceRun(folder / f"out.zarr.parts/{k}.zarr") for k in (1, 2, 3)]
    close(InfluenceRun(folder / "out.zarr").scores[...], sum(r.scores[...] for r in runs))
    after = content(folder / "out.zarr.parts")
    assert parts == {name: after[name] for name in parts}
    shutil.rmtree(folder / "out.zarr")
    changed(folder, checkpoints=["c"], weights=None)  # the first run is another one's now
    assert "1.zarr holds another run" in failed(1, *run(folder))
    done(*run(folder, "--overwrite"))
    assert InfluenceRun(folder / "out.zarr.parts/1.zarr").metadata("run")["job"]["adapter"] == "c"


@slow
def test_models_that_were_tuned_whole(tuned, folder):
    first = shutil.copytree(tuned.classifier, folder / "m1")
    second = another(first, folder / "m2", "model.safetensors")
    records = [
        {"text": f"{'good' * (i % 3)} {i}", "label": ["bad", "good"][i % 2]} for i in range(6)
    ]
    write_lines(folder / "train.jsonl", records)
    write_lines(folder / "test.jsonl", records[:2])
    job = {
        "task": "sequence-classification",
        "checkpoints": ["m1", "m2"],
        "parameters": ["classifier.*"],
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "device": "cpu",
    }
    write_job(folder, job)
    done(*run(folder))
    encoder = ClassEncoder(tokenizer(), 512, {"bad": 0, "good": 1}, 2)
    exact = [
        plain_scores(
            folder,
            "sequence-classification",
            model,
            None,
            encoder,
            SequenceClassification(),
            ("classifier.*",),
        )
        for model in (first, second)
    ]
    total = InfluenceRun(folder / "out.zarr")
    close(total.scores[...], exact[0] + exact[1])
    runs = [InfluenceRun(folder / f"out.zarr.parts/{k}.zarr") for k in (1, 2)]
    assert [r.metadata("run")["job"]["model"] for r in runs] == ["m1", "m2"]


@slow
def test_preferences_have_one_reference(folder):
    pairs = [
        {"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": " No."} for i in range(4)
    ]
    write_lines(folder / "train.jsonl", pairs)
    write_lines(folder / "test.jsonl", pairs[:2])
    changed(folder, task="preference", columns=None)
    done(*run(folder))
    total, first = InfluenceRun(folder / "out.zarr"), InfluenceRun(folder / "out.zarr.parts/1.zarr")
    for side in ("test", "train"):
        reference = first.metadata(side)["ref_chosen_logps"]
        assert total.metadata(side)["ref_chosen_logps"].tolist() == reference.tolist()
        assert (reference < 0).all()


@slow
def test_a_dry_run_counts_all_and_writes_nothing(folder):
    changed(folder, self_influence=None, exact_sample=0, memory="2MiB")
    both = done(*run(folder, "--dry-run"))
    changed(folder, checkpoints=["a"], weights=None)
    one = done(*run(folder, "--dry-run"))
    counts = [int(re.search(r"Gradients (\d+), of", told)[1]) for told in (both, one)]
    assert counts == [2 * (7 + 3), 7 + 3]
    assert "Checkpoints 2, one after the other, and their sum" in both
    assert not list(folder.glob("out*"))


@slow
def test_all_checkpoints_are_looked_for_before_anything_is_computed(folder, monkeypatch):
    monkeypatch.setattr(Prepared, "run", None)
    changed(folder, checkpoints=["a", "./c"])
    assert "There is no folder" in failed(2, *run(folder))
    shutil.copytree(folder / "b", folder / "c")
    weights = folder / "c" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "c/adapter_model.safetensors" in failed(2, *run(folder))
    assert not list(folder.glob("out*"))


@slow
def test_a_checkpoint_that_fails_later_leaves_what_there_is(folder, monkeypatch):
    prepare = checkpoints_module.prepare

    def unlucky(job, *arguments):
        if job.adapter == "./b":
            raise JobError("no luck")
        return prepare(job, *arguments)

    monkeypatch.setattr(checkpoints_module, "prepare", unlucky)
    assert "no luck" in failed(1, *run(folder))
    assert InfluenceRun(folder / "out.zarr.parts/1.zarr").is_complete


# What does not go together

JOB = {
    "task": "causal-lm",
    "model": "base",
    "checkpoints": ["a", "b"],
    "train": "x.jsonl",
    "test": "y.jsonl",
    "out": "out.zarr",
}
WRONG = {
    r"line 2: 'adapter' and 'checkpoints' exclude each other: name adapters": {"adapter": "a"},
    r"'model' is one of the 'checkpoints': leave": {"model": "b"},
    r"'checkpoints' must differ": {"checkpoints": ["a", "a"]},
    r"there are 1 'weights' for 2 'checkpoints'": {"weights": [1.0]},
    r"'weights' must not be all zero": {"weights": [0, 0]},
    r"'weights' must be greater than or equal to 0": {"weights": [1, -1]},
    r"'weights' must be a finite number": {"weights": [float("inf"), 1]},
    r"'weights' must be a number, not a truth value": {"weights": [True, 1]},
    r"'top_k' keeps the ends of scores": {"top_k": 3},
    r"'weights' are those of 'checkpoints', which are not named": {
        "weights": [1],
        "checkpoints": None,
    },
    r"'checkpoints' must be a list": {"checkpoints": "a"},
    r"'checkpoints' must be .*at least 1": {"checkpoints": []},
    r"'model' is required": {"checkpoints": None, "model": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_go_together(tmp_path, message):
    fields = {k: v for k, v in (WRONG[message] | (JOB | WRONG[message])).items() if v is not None}
    order = sorted(fields, key=lambda name: (name != "task", name))
    text = yaml.safe_dump({name: fields[name] for name in order}, sort_keys=False)
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobError, match=message):
        read_job(tmp_path / "job.yaml", {})


def test_which_checkpoints_are_adapters(tmp_path):
    (tmp_path / "job.yaml").write_text(json.dumps(JOB))
    adapters = read_job(tmp_path / "job.yaml", {})
    assert [adapters.of_checkpoint(path).adapter for path in "ab"] == ["a", "b"]
    assert adapters.of_checkpoint("b").model == "base"
    alone = {name: value for name, value in JOB.items() if name != "model"}
    (tmp_path / "job.yaml").write_text(json.dumps(alone))
    models = read_job(tmp_path / "job.yaml", {})
    assert [models.of_checkpoint(path).model for path in "ab"] == ["a", "b"]
    assert models.of_checkpoint("b").adapter is None
    assert models.of_checkpoint("b").as_told() == models.of_checkpoint("b").model_copy().as_told()
    assert "checkpoints" not in models.of_checkpoint("a").as_told()
