"""benchmarks/gpu: the check of a card, tried in tiny sizes on a CPU."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
sys.path.append(str(FOLDER))
check = import_module("check")
models = import_module("card_models")

SETTING = models.Setting(torch.device("cpu"), tiny=True)
QUICK = [name for name in check.SECTIONS if name != "workers"]


@pytest.mark.slow
def test_the_check_runs(tmp_path):
    command = [FOLDER / "check.sh", "--device", "cpu", "--tiny", "--out", tmp_path, "--only"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    run = subprocess.run(
        [*command, *QUICK], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == (tmp_path / "check.md").read_text()
    found = json.loads((tmp_path / "check.json").read_text())
    assert list(found) == QUICK
    said = {row["what"]: row["as it should be"] for rows in found.values() for row in rows}
    for what in (
        "rows of a convolutional network, TF32 off",
        "rows of a Llama with LoRA, TF32 off",
        "rows in bfloat16, attention: math",
        "rows of an LSTM",
        "the same run again",
    ):
        assert said[what] is True
    assert "Llama tiny, rows / bare" in said
    assert found["memory"][0]["value"] == "needs CUDA"


def test_a_section_that_fails_leaves_a_line():
    def section(setting):
        yield "first", "1", True
        raise RuntimeError("no kernel\nfor this card")

    rows = check.results_of(section, SETTING, 60)
    assert rows[:-1] == [
        ("first", "1", True),
        ("failed", "RuntimeError: no kernel for this card", False),
    ]


def test_a_section_that_takes_too_long_leaves_a_line():
    def section(setting):
        yield "first", "1", True
        time.sleep(60)
        yield "second", "2", True

    rows = check.results_of(section, SETTING, 0.2)
    assert rows[:-1] == [
        ("first", "1", True),
        ("failed", "TimeoutError: took longer than 0 s", False),
    ]


def test_wrong_rows_are_told():
    """The oracle sees another sample, and another weight."""
    model, (x, y) = models.recurrent(SETTING)
    exact = models.exact_rows(model, (x, y), models.image_loss)
    assert models.largest_error(exact, exact) == 0
    assert models.largest_error(exact.flip(0), exact) > 0.1
    model.head.weight.data[0, 0] += 0.1
    assert models.largest_error(models.exact_rows(model, (x, y), models.image_loss), exact) > 1e-3
