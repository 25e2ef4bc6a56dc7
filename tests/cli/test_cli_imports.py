"""What commands that only read a result import: nothing that takes seconds."""

import json
import subprocess
import sys

from torch.nn import functional as F

import small_runs
from pydvl_datainf import EkfacInfluence, LissaInfluence

HEAVY = (
    "datasets",
    "distributed",
    "joblib",
    "matplotlib",
    "pandas",
    "peft",
    "pydvl",
    "sklearn",
    "torch",
    "transformers",
)

SCRIPT = """\
import json, sys
from pydvl_datainf.cli import main

for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as end:
        assert not end.code, (command, end.code)
print(json.dumps(sorted(sys.modules)))
"""


def test_what_only_reads_a_result_imports_nothing_heavy(tmp_path):
    texts = [f"text {i}" for i in range(small_runs.N)]
    lines = [json.dumps({"id": i, "prompt": "?", "answer": t}) for i, t in enumerate(texts)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    job = {"task": "causal-lm", "model": "m", "train": "train.jsonl", "test": "t", "columns": {}}
    told = {"train": {"prompt": ["?"] * len(texts), "answer": texts}}
    named = ("own.zarr", "of_job.zarr", "compressed.zarr", "lissa.zarr", "ekfac.zarr")
    stores = [str(tmp_path / name) for name in named]
    small_runs.run(stores[0], self_influence=True, exact_sample=9)
    small_runs.run(stores[1], metadata={**told, "run": {"job": job}})
    small_runs.run(stores[2], rows="compressed", rank="auto", basis_sample=9)
    for store, method in ((stores[3], LissaInfluence), (stores[4], EkfacInfluence)):
        influence = method(small_runs.network(), F.cross_entropy, 1.0)
        small_runs.run(store, influence, rows="zarr")
    train, drop = str(tmp_path / "train.jsonl"), ["--drop-harmful", "2"]
    commands = [
        ["--help"],
        ["top", "--help"],
        ["info", stores[0], "--check"],
        ["top", stores[0], "--by", "suspicion"],
        ["top", stores[0], "--test", "2", "--format", "csv"],
        ["select", stores[0], "--train", train, *drop, "-o", str(tmp_path / "own.jsonl")],
        ["select", stores[1], *drop, "-o", str(tmp_path / "of_job.jsonl")],
    ]
    for store in stores[2:]:
        own = ["--train", train, *drop, "-o", f"{store}.jsonl"]
        commands += [["info", store, "--check"], ["top", store], ["select", store, *own]]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    modules = json.loads(run.stdout.splitlines()[-1])
    assert "zarr" in modules  # the premise: it did read
    assert [name for name in HEAVY if name in modules] == []
    assert len((tmp_path / "of_job.jsonl").read_text().splitlines()) == small_runs.N - 2
