"""`query: margin` in jobs: another question about test samples than their loss."""

import json

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM

import dense
from pydvl_datainf import InfluenceRun
from pydvl_datainf.cli import main
from tuned import log_probability, pairs, sums, write_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


def run(folder, job):
    (folder / "job.yaml").write_text(json.dumps(job))  # JSON is YAML
    return CliRunner().invoke(main, ["run", str(folder / "job.yaml"), "--no-progress"])


def done(folder, job):
    result = run(folder, job)
    assert result.exit_code == 0, result.output
    return InfluenceRun(folder / job["out"])


def job_of(task, **fields):
    usual = {"train": "train.jsonl", "test": "test.jsonl", "out": "out.zarr", "device": "cpu"}
    return {"task": task, "query": "margin", **usual, **fields}


def lead(model, pair):
    chosen, rejected = (log_probability(model, pair["prompt"], pair[k]) for k in SIDES)
    return chosen - rejected


SIDES = ("chosen", "rejected")


def test_the_margin_of_the_chosen_answer(tuned, tmp_path):
    train, test = pairs(6), pairs(3)
    write_lines(tmp_path / "train.jsonl", train)
    write_lines(tmp_path / "test.jsonl", test)
    adapter = str(tuned.causal_adapter)
    stored = done(
        tmp_path, job_of("preference", model=str(tuned.causal), adapter=adapter, beta=0.3)
    )
    base = AutoModelForCausalLM.from_pretrained(tuned.causal).double()
    model = PeftModel.from_pretrained(base, tuned.causal_adapter, is_trainable=True).eval()
    with torch.no_grad(), model.disable_adapter():
        reference = [lead(model, pair) for pair in train]
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    def rows(losses):
        parameters = [model.get_parameter(name) for name in names]
        grads = [torch.autograd.grad(loss, parameters) for loss in losses]
        return {n: torch.stack([g[i].flatten() for g in grads]) for i, n in enumerate(names)}

    losses = [
        torch.nn.functional.softplus(-0.3 * (lead(model, pair) - before))
        for pair, before in zip(train, reference, strict=True)
    ]
    g, v = rows(losses), rows([-lead(model, pair) for pair in test])
    total = sum(
        v[name] @ dense.datainf_matrix(g[name], stored.damping[block]) @ g[name].T
        for block, (name,) in stored.attrs["fingerprint"]["blocks"].items()
    )
    scores = torch.from_numpy(stored.scores[...]).double()
    torch.testing.assert_close(scores, total, rtol=0, atol=2e-5 * float(total.abs().max()))
    expected = torch.stack(losses).detach()
    found = torch.from_numpy(stored.training_loss()).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_classifier_is_asked_for_its_margin_and_the_run_says_so(tuned, tmp_path):
    samples = [{"text": f"What is {i}?", "label": ["bad", "good"][i % 2]} for i in range(6)]
    write_lines(tmp_path / "train.jsonl", samples)
    write_lines(tmp_path / "test.jsonl", samples[:2])
    files = {"model": str(tuned.encoder), "adapter": str(tuned.classes_adapter)}
    job = job_of("sequence-classification", **files, labels=["bad", "good"])
    stored = done(tmp_path, job)
    assert "Margin(against='best'" in stored.attrs["fingerprint"]["test objective"]
    assert stored.metadata("run")["job"]["query"] == "margin"
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "out.zarr")]).stdout
    assert "Objective of test samples" in shown
    result = run(tmp_path, {name: value for name, value in job.items() if name != "query"})
    assert result.exit_code == 1
    assert "job: query: 'margin' in the store, None now" in result.stderr


@pytest.mark.parametrize("query", ["loss", 3])
def test_another_query_is_refused(tmp_path, query):
    result = run(tmp_path, job_of("preference", model="m", adapter="a") | {"query": query})
    assert result.exit_code == 2
    assert "'query' must be 'margin'" in result.stderr


def test_tasks_without_a_margin_are_refused(tuned, tmp_path):
    write_lines(tmp_path / "train.jsonl", sums(4))
    write_lines(tmp_path / "test.jsonl", sums(2))
    result = run(tmp_path, job_of("causal-lm", model=str(tuned.causal)))
    assert result.exit_code == 2
    assert "'query' does not belong to task causal-lm" in result.stderr
    assert not (tmp_path / "out.zarr").exists()
