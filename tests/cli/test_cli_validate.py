"""`pydvl-datainf validate`: from a job to what its scores are worth, as a user runs it."""

import json
import warnings
from shutil import copytree

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification

from commands import invoke
from pydvl_datainf import InfluenceRun
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.jobfile.recipe import RecipeCheck
from pydvl_datainf.jobfile.retraining import Retraining
from pydvl_datainf.jobfile.validation import JobValidation, recipe_of
from pydvl_datainf.yardstick import half_subsets, measure, validate
from tuned import tokenizer, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

LABELS = ("bad", "good")
N, M, SUBSETS = 12, 4, 10
TRAINING = {
    "epochs": 2,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "schedule": "constant",
}


def records(count):
    return [
        {
            "id": f"r{i}",
            "text": f"It is {i * i * i}." * (1 + i % 3),
            "label": ("bad", "good")[i % 2],
        }
        for i in range(count)
    ]


def tune(base, folder):
    """A classifier with an adapter, tuned in a loop of the tests' own."""
    torch.manual_seed(9)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, config)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.02, weight_decay=0.0)
        data = records(N)
        for _ in range(2):
            for part in torch.randperm(N).split(4):
                some = [data[i] for i in part]
                texts = tokenizer()([r["text"] for r in some], padding=True, return_tensors="pt")
                labels = torch.tensor([int(r["label"] == "good") for r in some])
                model(**texts, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        model.save_pretrained(folder)


def validated(folder, *options):
    result = invoke("validate", folder / "job.yaml", "--subsets", SUBSETS, *options)
    assert result.exit_code == 0, result.output
    return result


def numbers(folder, *options):
    return json.loads(validated(folder, "--json", *options).stdout)


def failed(code, folder, *options):
    result = invoke("validate", folder / "job.yaml", "--subsets", SUBSETS, *options)
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture(scope="module")
def finished(tuned, tmp_path_factory):
    """A job whose run is complete, and nothing retrained."""
    folder = tmp_path_factory.mktemp("finished")
    write_lines(folder / "train.jsonl", records(N))
    write_lines(folder / "test.jsonl", records(M)[::-1])
    tune(tuned.encoder, folder / "adapter")
    job = {
        "task": "sequence-classification",
        "model": str(tuned.encoder),
        "adapter": "adapter",
        "labels": ["bad", "good"],
        "train": "train.jsonl",
        "test": "test.jsonl",
        "columns": {"id": "id"},
        "out": "out.zarr",
        "device": "cpu",
        "training": TRAINING,
    }
    (folder / "job.yaml").write_text(json.dumps(job))
    result = invoke("run", folder / "job.yaml", "--no-progress")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    copytree(finished, tmp_path / "job")
    return tmp_path / "job"


@pytest.fixture
def calls(monkeypatch):
    """The retrainings that are made, and after how many Ctrl-C is pressed."""
    made, plain = [], Retraining.__call__
    state = {"stop": None, "made": made}

    def counted(self, indices, seed=0):
        if len(made) == state["stop"]:
            raise KeyboardInterrupt
        made.append((len(indices), seed))
        return plain(self, indices, seed)

    monkeypatch.setattr(Retraining, "__call__", counted)
    return state


def changed(folder, **fields):
    job = json.loads((folder / "job.yaml").read_text()) | fields
    (folder / "job.yaml").write_text(json.dumps(job))


def test_the_numbers_and_that_what_was_retrained_is_used_again(folder, calls):
    found = numbers(folder)
    full, halves = [(N, s) for s in range(found["recipe"]["seeds"])], [(N // 2, 0), (N // 2, 1)]
    assert sorted(calls["made"]) == sorted(full + SUBSETS * halves)
    again = Retraining(read_job(folder / "job.yaml", {}), folder)
    members = half_subsets(N, SUBSETS, 0)
    losses = np.array([[again(np.flatnonzero(k), s) for s in (0, 1)] for k in members])
    sums = members @ InfluenceRun(folder / "out.zarr").scores[...].astype(float).T
    exact = [spearmanr(sums[:, t], -losses.mean(1)[:, t])[0] for t in range(M)]
    assert found["lds"] == pytest.approx(np.mean(exact), abs=1e-9)
    away = np.mean([np.abs(again(range(n), s) - again.of_tuned()) for n, s in full])
    assert found["recipe"]["distance"] == pytest.approx(away, abs=1e-9)
    told = (found["subsets"], found["seeds"], found["test_samples"], found["method"])
    assert told == (SUBSETS, 2, M, "datainf")
    calls["stop"] = len(calls["made"])
    result = validated(folder)  # trains nothing
    shown = " ".join(result.stdout.split())
    assert f"{found['lds']:.3f} ± {found['error']:.3f}" in shown
    assert f"ceiling {found['ceiling']:.3f}" in shown
    assert result.stdout.rstrip().endswith(found["meaning"])
    assert "Taking what is in the bank: the model on all training data" in result.stderr
    assert "The recipe fits: test losses differ by" in result.stderr
    assert "over halves and test samples. Size: actual / predicted change." in result.stdout
    page = folder / "report.html"
    assert invoke("report", folder / "out.zarr", "-o", page).exit_code == 0
    assert f"{found['lds']:.2f} ± {found['error']:.2f}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("done", [1, 7])
def test_a_call_that_was_stopped_goes_on(folder, finished, calls, done):
    calls["stop"] = done
    result = invoke("validate", folder / "job.yaml", "--subsets", SUBSETS)
    assert result.exit_code == 130, result.output
    assert "Stopped. What was retrained is kept, and the same command goes on." in result.stdout
    assert len(calls["made"]) == done
    assert "Tuning the model on all training data" in result.stderr
    calls["stop"] = None
    found = numbers(folder)
    assert len(calls["made"]) == found["recipe"]["seeds"] + 2 * SUBSETS
    assert found["subsets"] == SUBSETS


def test_a_run_that_is_not_there_or_not_finished(folder, monkeypatch):
    command = f"pydvl-datainf run {folder}/job.yaml"
    with monkeypatch.context() as patch:
        patch.setattr(InfluenceRun, "is_complete", False)
        assert f"out.zarr is not complete. Finish it: {command}" in failed(1, folder)
    changed(folder, out="other.zarr")
    message = failed(1, folder)
    assert f"There is no run at {folder}/other.zarr yet. Make it first: {command}" in message


def test_the_run_of_another_job(folder):
    changed(folder, max_length=7)
    message = failed(1, folder)
    assert "out.zarr is of another job. What differs:\n  - max_length: 512 in the store" in message
    assert f"pydvl-datainf run {folder}/job.yaml --overwrite" in message


def test_what_was_retrained_for_the_job_before_is_not_that_of_the_run(folder):
    def train(indices, seed):
        return np.outer(1 + np.arange(M), np.arange(N) ** 2)[:, indices].sum(1)

    recipe = recipe_of(Retraining(read_job(folder / "job.yaml", {}), folder))
    settings = {"subsets": SUBSETS, "seeds": 1, "recipe": recipe, "progress": False}
    found = validate(InfluenceRun(folder / "out.zarr"), train, **settings)
    beside = "against the retrainings beside it: {}".format
    assert beside(f"{found.lds:.2f} ±") in invoke("top", folder / "out.zarr").stdout
    changed(folder, max_length=500)
    assert invoke("run", folder / "job.yaml", "--overwrite", "--no-progress").exit_code == 0
    assert beside("not known.") in invoke("top", folder / "out.zarr").stdout
    assert "are others than those asked for" in failed(1, folder)


def test_data_that_changed_since(folder, calls):
    write_lines(folder / "train.jsonl", records(N)[::-1])
    assert "training or test data is not what the run" in failed(1, folder)
    (folder / "train.jsonl").write_text("{}")
    assert "line 1: no column 'text'" in failed(2, folder)
    assert calls["made"] == []


def test_a_job_that_does_not_say_how_its_model_was_tuned(folder):
    job = json.loads((folder / "job.yaml").read_text())
    del job["training"]["epochs"]
    (folder / "job.yaml").write_text(json.dumps(job))
    assert "'training.epochs' is required" in failed(2, folder)
    del job["training"]
    (folder / "job.yaml").write_text(json.dumps(job))
    assert "no 'training', which says how its model was tuned: epochs, b" in failed(2, folder)


def test_a_recipe_that_did_not_make_the_model(folder, calls):
    changed(folder, training=TRAINING | {"learning_rate": 1e-4})
    message = failed(1, folder)
    assert "'training' is not the recipe that made the model. Tuned again on all" in message
    assert calls["made"] == [(N, seed) for seed in range(6)]
    changed(folder, training=TRAINING)  # corrected, it begins anew in the same place
    assert numbers(folder)["bank"] == str(folder / "out.zarr.bank")
    changed(folder, training=TRAINING | {"seed": 3})
    before = len(calls["made"])
    assert "are others than those asked for" in failed(1, folder)
    assert len(calls["made"]) == before


def test_what_it_means_when_nothing_can_be_told():
    losses = np.random.default_rng(0).standard_normal((SUBSETS, 1, M))
    check = RecipeCheck(np.ones(M), np.ones((2, M)))
    found = JobValidation("exact", measure(np.zeros((M, SUBSETS)), losses), check, "b.bank")
    assert found.meaning.startswith("No relation between the scores and the losses")
    told = found.to_json()
    assert (told["lds"], told["slope"], told["ceiling"]) == (0, None, None)
    assert told["constant_scores"] == M


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", 1, "--subsets", 10], "--minutes and --subsets exclude each other"),
        (["--subsets", 9], "9 is not in the range x>=10"),
        (["--minutes", 0], "0.0 is not in the range x>0"),
    ],
)
def test_budgets_that_do_not_suit_are_refused_before_anything_is_tuned(
    folder, calls, options, message
):
    result = invoke("validate", folder / "job.yaml", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert calls["made"] == []
