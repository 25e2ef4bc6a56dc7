"""`pydvl-datainf run --dry-run`: what it foretells is what happens."""

import re

import pytest

from commands import done
from jobs import changed
from pydvl_datainf import InfluenceRun
from pydvl_datainf.runner import choices
from tuned import sums, tokenizer

pytestmark = pytest.mark.slow


def test_a_dry_run_foretells_that_many_gradients_go_to_the_disk(folder, monkeypatch):
    monkeypatch.setattr(choices, "MOST_IN_MEMORY", 19)
    shown = done("run", folder / "job.yaml", "--dry-run", "--no-progress")
    assert "Rows kept on disk, in half precision" in shown
    # 2·20·256 of rows and 4·20·4 of scores; 8·4·256 of vectors, in one piece.
    assert "Disk 10.31 kiB, and as much as 8.00 kiB for a time" in shown
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
        "Which are 20 of training samples, 4 of test samples, 4 of some samples again, to measure",
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
