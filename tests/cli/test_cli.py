import re
import runpy
import signal
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pydvl_datainf import cli
from pydvl_datainf.cli import console, demonstrating
from pydvl_datainf.demo import output, packages
from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.errors import DampingError
from pydvl_datainf.results.reader import InfluenceRun


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def one_line(text):
    return " ".join(text.split())


@pytest.fixture
def no_packages(monkeypatch):
    """Lets the demo begin without its packages."""
    monkeypatch.setattr(demonstrating, "check_packages", lambda: None)


@pytest.fixture
def runs(monkeypatch, no_packages):
    """Puts a stub in place of the work; gives the settings it was called with."""
    calls = []

    def run(settings, out, overwrite, progress):
        calls.append((settings, overwrite, progress))
        out.mkdir()
        (out / output.ROC_PLOT).touch()
        (out / output.LOCK).touch()

    monkeypatch.setattr(demonstrating, "_run", run)
    return calls


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert version("pydvl-datainf") in result.stdout


INTERRUPTED = """
import importlib, os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
module, function, *sys.argv = sys.stdin.read().split(":")
getattr(importlib.import_module(module), function)()
"""


RUN = "run:--task:causal-lm:--model:m:--train:t.jsonl:--test:t.jsonl:--out"


@pytest.mark.parametrize(
    "arguments",
    [
        "pydvl-datainf:--version:zarr",
        "pydvl-datainf:demo:--out:torch",
        f"pydvl-datainf:{RUN}:torch",
    ],
)
def test_ctrl_c_while_the_command_is_imported_is_one_line(arguments):
    metadata = ConfigParser()
    metadata.read(Path(__file__).parents[2] / "setup.cfg")
    (script,) = metadata["options.entry_points"]["console_scripts"].strip().splitlines()
    name, _, place = script.partition(" = ")
    command = [sys.executable, "-c", INTERRUPTED]
    place = f"{place}:{arguments}"
    run = subprocess.run(command, input=place, capture_output=True, text=True, check=False)
    assert name == "pydvl-datainf"
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == "Stopped before anything was begun.\n"


def test_the_command_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", "--version"])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pydvl_datainf_command", run_name="__main__")
    assert (ended.value.code, capsys.readouterr().out) == (0, invoke("--version").stdout)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_any_command_is_one_line(monkeypatch, no_packages, tmp_path):
    def stopping(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstrating, "_run", stopping)
    monkeypatch.setattr(console, "InfluenceRun", stopping)
    for arguments in (["demo", "--out"], ["info"], ["top"], ["report"]):
        result = invoke(*arguments, tmp_path)
        assert (result.exit_code, result.output) == (130, "Stopped.\n")


def test_help_tells_sizes_and_seed():
    text = one_line(invoke("demo", "--help").stdout)
    for expected in ("--train", "--seed", "[default: 2000; x>=1]", "12,752", "same scores"):
        assert expected in text


def test_every_option_reaches_the_settings(runs, tmp_path):
    options = "--train 7 --test 3 --epochs 2 --flip 0.4 --rank 5 --tokens 9 --batch-size 6"
    options += " --learning-rate 0.01 --seed 8 --no-progress"
    result = invoke("demo", "--out", tmp_path / "new", *options.split())
    assert result.exit_code == 0
    expected = DemoSettings(
        train=7,
        test=3,
        epochs=2,
        flip=0.4,
        rank=5,
        tokens=9,
        batch_size=6,
        learning_rate=0.01,
        seed=8,
    )
    assert runs == [(expected, False, False)]


def test_defaults_are_those_of_the_settings(runs, tmp_path):
    result = invoke("demo", "--out", tmp_path / "new", "--overwrite")
    assert result.exit_code == 0
    assert runs == [(DemoSettings(), True, True)]
    written, named = result.stdout.split("To look at it, ")
    assert one_line(written) == f"Written to {tmp_path / 'new'}: {output.ROC_PLOT}"
    assert named == f"open {tmp_path / 'new' / output.REPORT} in a browser.\n"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--train", "0"),
        ("--test", "few"),
        ("--flip", "0.5"),
        ("--flip", "0"),
        ("--tokens", "513"),
        ("--learning-rate", "0"),
        ("--seed", "-1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong, runs, tmp_path):
    result = invoke("demo", "--out", tmp_path / "new", *wrong)
    assert result.exit_code == 2
    assert f"Invalid value for '{wrong[0]}'" in result.stderr
    assert runs == []


def test_settings_that_do_not_fit_together_are_refused(runs, tmp_path):
    result = invoke("demo", "--out", tmp_path / "new", "--train", 4, "--flip", 0.1)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: flip=0.1 of train=4 reviews flips no label")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_a_message(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "LIBRARIES", ("no_such_library",))
    result = invoke("demo", "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "pip install 'pydvl-datainf[demo]'" in result.stderr


@pytest.mark.parametrize("error", [DampingError("no λ for 'a'"), OSError("the disk is full")])
def test_errors_of_the_run_are_messages(error, monkeypatch, no_packages, tmp_path):
    def run(settings, out, overwrite, progress):
        raise error

    monkeypatch.setattr(demonstrating, "_run", run)
    result = invoke("demo", "--out", tmp_path / "new")
    assert result.exit_code == 1
    assert result.stderr == f"Error: {error}\n"
    assert list(tmp_path.iterdir()) == []


def test_faults_of_the_program_are_not_hidden(monkeypatch, no_packages, tmp_path):
    def run(settings, out, overwrite, progress):
        raise ZeroDivisionError

    monkeypatch.setattr(demonstrating, "_run", run)
    assert isinstance(invoke("demo", "--out", tmp_path / "new").exception, ZeroDivisionError)


@pytest.mark.demo
def test_the_demo_prints_tables_and_writes_scores_and_plots_and_reuses_them(tmp_path):
    out = tmp_path / "results"
    sizes = "--train 20 --test 4 --epochs 1 --tokens 12 --batch-size 8 --rank 1"
    result = invoke("demo", "--out", out, *sizes.split())
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == output.FILES
    last = f"To look at it, open {out.resolve() / output.REPORT} in a browser.\n"
    assert result.stdout.endswith(last)

    found = DemoResult.from_run(InfluenceRun(out / output.SCORES))
    assert found.scores.influences.shape == (4, 20)
    assert len(found.aucs()) == 8
    for name, auc in found.aucs().items():
        assert re.search(rf"{re.escape(name)} +{auc:.3f}", result.stdout)
    mean = found.scores.influences.mean(axis=0, dtype=np.float64)
    assert f"{mean.min():+.2e}" in result.stdout
    assert result.stdout.count("What helps and what harms") == 3
    for bar in ("Tuning: 100%", "gradients: "):
        assert bar in result.stderr

    again = invoke("demo", "--out", out, "--overwrite", *sizes.split())
    assert again.stdout == result.stdout
    assert re.fullmatch(r"Reusing the result of 20.*, which has the same settings.\n", again.stderr)
    refused = invoke("demo", "--out", out, *sizes.split(), "--seed", 1)
    assert refused.exit_code == 1
    assert "other settings (seed: 0 in the store, 1 now)" in refused.stderr
