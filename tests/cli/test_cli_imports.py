"""What commands import that compute nothing, or are refused: nothing that takes seconds."""

import json
import subprocess
import sys
from io import StringIO

import click
import pytest
from torch.nn import functional as F

import small_runs
from pydvl_datainf import EkfacInfluence, LissaInfluence
from pydvl_datainf.cli import commands

HEAVY = (
    "datasets",
    "distributed",
    "joblib",
    "matplotlib",
    "pandas",
    "peft",
    "pydvl",
    "scipy.stats",
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
        assert bool(end.code) == (command[0] in ("run", "ask")), (command, end.code)
print(json.dumps(sorted(sys.modules)))
"""


def test_what_computes_nothing_imports_nothing_heavy(tmp_path):
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
    assert_nothing_heavy(HEAVY, commands)
    assert len((tmp_path / "of_job.jsonl").read_text().splitlines()) == small_runs.N - 2
    pages = [["report", store, "-o", f"{store}.html"] for store in stores]
    assert_nothing_heavy([name for name in HEAVY if name != "matplotlib"], pages)
    (tmp_path / "job.yaml").write_text("task: causal-lm\nmodle: m\n")
    refused = [["run", str(tmp_path / "job.yaml")], ["run", str(tmp_path / "none.yaml")]]
    refused += [["ask", str(tmp_path / "none.zarr"), "--prompt", "?"]]
    assert_nothing_heavy(HEAVY, [["info", stores[0]], *refused])


def assert_nothing_heavy(heavy, commands):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    modules = json.loads(run.stdout.splitlines()[-1])
    assert "zarr" in modules  # the premise: it did read
    assert [name for name in heavy if name in modules] == []


class Terminal(StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "options", "is_told"),
    [(Terminal, [], True), (Terminal, ["--no-progress"], False), (StringIO, [], False)],
)
def test_a_terminal_is_told_at_once_what_takes_so_long(monkeypatch, stream, options, is_told):
    errors, told = stream(), []
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr(commands, "import_module", lambda name: told.append(errors.getvalue()))

    @click.command(cls=commands.WithTorch)
    @click.option("--progress/--no-progress", default=True)
    def compute(progress):
        line = "Importing torch, pyDVL and transformers takes some seconds ...\n"
        assert told == [line if is_told else ""]

    compute(options, standalone_mode=False)
