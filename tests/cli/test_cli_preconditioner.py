"""Jobs in the coordinates of the Adam that tuned the adapter."""

import json
import shutil

import numpy as np
import pytest
import torch

import dense
from commands import done, failed
from jobs import changed
from pydvl_datainf import InfluenceRun, JobError
from pydvl_datainf.huggingface import ModelFiles, read_records
from pydvl_datainf.jobfile.reading import read_job
from stepped import scales
from tiny import answer_loss
from tuned import tokenizer


@pytest.fixture
def tuned_by_adam(tuned, folder):
    """The job's adapter as a checkpoint, with the state of an optimizer grouped as by a Trainer."""
    path = shutil.copytree(tuned.causal_adapter, folder / "checkpoint-3")
    model = ModelFiles("causal-lm", str(tuned.causal), str(path)).load()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": list(named.values())}, {"params": []}]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    changed(folder, adapter="checkpoint-3", preconditioner="adam", rows="memory", exact_sample=0)
    return {n: scales(optimizer.state[p]["exp_avg_sq"].double(), 3) for n, p in named.items()}


def gradients(model, records, names):
    words, rows = tokenizer(), []
    for record in records:
        ids = words(record["prompt"] + record["answer"])["input_ids"] + [words.eos_token_id]
        start = len(words(record["prompt"])["input_ids"])
        batch = {
            "input_ids": torch.tensor([ids]),
            "labels": torch.tensor([[-100] * start + ids[start:]]),
        }
        rows.append(dense.gradients(model, answer_loss, batch, names))
    return torch.cat(rows)


def test_a_job_takes_the_state_beside_its_adapter(tuned, folder, tuned_by_adam):
    done("run", folder / "job.yaml", "--no-progress")
    run = InfluenceRun(folder / "out.zarr")
    assert run.attrs["fingerprint"]["preconditioner"]["step"] == 3
    assert run.metadata("run")["job"]["preconditioner"] == "adam"
    files = ModelFiles("causal-lm", str(tuned.causal), str(tuned.causal_adapter))
    model = dense.in_float64(files.load())
    train, test = (
        [record for _, record in read_records(folder / f"{side}.jsonl")]
        for side in ("train", "test")
    )
    blocks = run.attrs["fingerprint"]["blocks"]
    names, total, plain = [n for members in blocks.values() for n in members], 0, 0
    sizes = [sum(tuned_by_adam[n].numel() for n in members) for members in blocks.values()]
    rows = [gradients(model, data, names).split(sizes, 1) for data in (train, test)]
    for (block, members), G, V in zip(blocks.items(), *rows, strict=True):
        s = torch.cat([tuned_by_adam[name] for name in members])
        inverse = dense.datainf_matrix(G * s, run.damping[block])
        total = total + (V * s) @ inverse @ (G * s).T
        plain = plain + V @ dense.datainf_matrix(G, dense.automatic_damping(G)) @ G.T
    found, atol = torch.from_numpy(run.scores[...]).double(), 2e-5 * float(total.abs().max())
    torch.testing.assert_close(found, total, rtol=0, atol=atol)
    assert (found - plain).abs().max() > 1e-2 * plain.abs().max()  # negative control
    changed(folder, normalize="unit", out="unit.zarr")
    done("run", folder / "job.yaml", "--no-progress")
    norms = np.sqrt(run.store.read("squared_norms").sum(1))
    scores = InfluenceRun(folder / "unit.zarr").scores[...]
    np.testing.assert_allclose(scores, run.scores[...] / norms, rtol=1e-5)


def test_what_does_not_go_is_refused_before_data_is_read(folder):
    changed(folder, preconditioner="adam", train="absent.jsonl")
    told = failed(2, "run", folder / "job.yaml", "--no-progress")
    assert "There is no file" in told
    assert "optimizer.pt" in told
    changed(folder, normalize="unit", self_influence=True)
    with pytest.raises(JobError, match="'normalize' and 'self_influence' exclude each other"):
        read_job(folder / "job.yaml", {})
    changed(folder, method="ekfac", self_influence=False)
    with pytest.raises(JobError, match="method ekfac needs the gradients of layers as matrices"):
        read_job(folder / "job.yaml", {})
    (folder / "job.yaml").write_text(
        json.dumps(
            {
                "task": "denoising",
                "model": "m",
                "train": "a.jsonl",
                "test": "b.jsonl",
                "out": "o",
                "preconditioner": "adam",
            }
        )
    )
    with pytest.raises(JobError, match="'preconditioner' does not belong to task denoising"):
        read_job(folder / "job.yaml", {})
