"""Jobs in files, as the command runs them, and what the formula says of their results."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

import commands
import dense
from tuned import sums, write_lines

WEIGHTS = [0.5, 2.0]
"""Of the checkpoints of a job."""


def write_job(folder, job):
    (folder / "job.yaml").write_text(json.dumps(job))  # JSON is YAML


def write_language_job(folder, tuned):
    """A job on a causal language model, with its data."""
    write_lines(folder / "train.jsonl", sums(20))
    write_lines(folder / "test.jsonl", sums(4)[::-1])
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
    write_job(folder, job)
    return folder


def write_checkpoints_job(folder, tuned, test, **fields):
    """A job on two adapters of a causal language model, and their weights."""
    shutil.copytree(tuned.causal_adapter, folder / "a")
    another(tuned.causal_adapter, folder / "b", "adapter_model.safetensors")
    write_lines(folder / "train.jsonl", sums(7))
    write_lines(folder / "test.jsonl", test)
    job = {
        "task": "causal-lm",
        "model": str(tuned.causal),
        "checkpoints": ["a", "./b"],
        "weights": WEIGHTS,
        "train": "train.jsonl",
        "test": "test.jsonl",
        "out": "out.zarr",
        "columns": {"id": "id"},
        "device": "cpu",
    }
    write_job(folder, job | fields)
    return folder


def another(source, to, name):
    """A later checkpoint: the same folder with other weights."""
    shutil.copytree(source, to)
    weights = load_file(to / name)
    save_file({key: 0.7 * value for key, value in weights.items()}, to / name, {"format": "pt"})
    return to


def changed(folder, **fields):
    job = json.loads((folder / "job.yaml").read_text()) | fields
    write_job(folder, job)


def unread(*arguments):
    raise AssertionError("it was read")


def reviews(count):
    return [
        {"review": f"It is {'not ' * (i % 2)}2 plus {i}", "verdict": ["good", "bad"][i % 2]}
        for i in range(count)
    ]


def write_csv(path, records):
    lines = "".join(f"{record['review']},{record['verdict']}\n" for record in records)
    path.write_text("review,verdict\n" + lines)


def run(folder, job, *options):
    write_job(folder, job)
    return commands.invoke("run", folder / "job.yaml", "--no-progress", *options)


def done(folder, job, *options):
    """What the command prints when it succeeds."""
    result = run(folder, job, *options)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def assert_right(stored, model, objective, test, train):
    """Compares scores with the formula, from one backward pass for each sample in float64."""
    model = dense.in_float64(model)

    def loss(model, batch):
        return objective.losses(model, batch)

    def wide(batch):
        return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}

    blocks = stored.attrs["fingerprint"]["blocks"]
    G, V = (dense.gradients_by_block(model, loss, wide(b), blocks) for b in (train, test))
    total = dense.influences(V, G, G, stored.damping)
    scores = torch.from_numpy(stored.scores[...]).double()
    torch.testing.assert_close(scores, total, rtol=0, atol=2e-5 * float(total.abs().max()))
