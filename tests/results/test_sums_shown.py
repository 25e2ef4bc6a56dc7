"""A sum of runs as commands, reports and other programs show it."""

import json
import re
from io import StringIO

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, ExactInfluence, run_influences, sum_runs
from pydvl_datainf.cli import main
from pydvl_datainf.report import write_report
from pydvl_datainf.results.facts import run_facts
from pydvl_datainf.tables import info_tables
from report_pages import samples

N, M = 9, 4


def made(store, seed, kind=DataInfInfluence, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    metadata = {"train": {"text": [f"text {k}" for k in range(N)]}}
    influence = kind(model, F.cross_entropy, batch_size=4)
    settings = {"metadata": metadata, "progress": False} | settings
    return run_influences(influence, samples(M, 2), samples(N, 1), store, **settings)


@pytest.fixture(scope="module", params=[False, True], ids=["scores", "by block"])
def total(request, tmp_path_factory):
    """A sum of runs with and without DataInf, with self-influences."""
    folder = tmp_path_factory.mktemp("sum")
    settings = {"by_block": request.param, "self_influence": True}
    runs = [
        made(folder / "a.zarr", 0, **settings),
        made(folder / "b.zarr", 1, ExactInfluence, **settings),
    ]
    return sum_runs(runs, folder / "sum.zarr", [0.25, 1.5], progress=False)


def scores_of(run):
    scores = run.scores[...]
    return scores.sum(1) if scores.ndim == 3 else scores


def test_facts_name_what_was_added(total):
    facts = run_facts(total, place=lambda place: place.rpartition("/")[2])
    assert facts["What was added, by weight"] == {
        "Run 1, x 0.25": "DataInf, in a.zarr",
        "Run 2, x 1.5": "exact, in b.zarr",
    }
    run = facts["The run"]
    assert run["Method"] == "sum of DataInf, exact"
    assert run["Damping λ, smallest to largest"] == "those of the parts, each with its own"
    assert run["Compared with the exact inverse"] == "each part by itself: see there"
    assert run["Training rows kept"] == "no"
    assert run["Self-influences"] == "yes"
    assert facts["How far it is"]["Complete"] == "yes"
    console = Console(file=StringIO(), width=200)
    console.print(*info_tables(total, blocks=True))
    assert "sum of DataInf, exact" in console.file.getvalue()


def test_commands_show_it(total):
    store, scores = str(total.store), scores_of(total)
    told = CliRunner().invoke(main, ["info", store, "--blocks", "--check"])
    assert told.exit_code == 0, told.output
    assert "Every chunk was read and is sound." in told.output
    best = CliRunner().invoke(main, ["top", store, "--test", "2", "--k", "1"])
    assert best.exit_code == 0, best.output
    assert f"text {scores[2].argmax()}" in best.output
    assert f"{scores[2].max():+.2e}" in best.output
    mean = CliRunner().invoke(main, ["top", store, "--k", "1", "--most", "harmful"])
    assert f"{scores.mean(0).min():+.2e}" in mean.output


def test_a_report_shows_it(total, tmp_path):
    write_report(total, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "sum of DataInf, exact" in page
    assert "This is a sum of runs, each of which has an inverse of its own." in page
    assert str(total.store.path.parent) not in page  # places are nobody's business elsewhere
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    blocks = json.loads(data)["blocks"]
    assert blocks["widths"] == [16, 10]
    assert "damping" not in blocks
    assert ("shares" in blocks) == (total.scores.ndim == 3)


def test_other_programs_read_it(total):
    opened = total.to_xarray()
    np.testing.assert_array_equal(opened.scores.values, total.scores[...])
    assert {"damping", "squared_norms"}.isdisjoint(opened.variables)
    assert opened.mean_influence.dims == ("train",)


def test_damage_to_a_job_s_sum_is_mended_by_the_job(tmp_path):
    runs = [made(tmp_path / f"{seed}.zarr", seed) for seed in (0, 1)]
    sum_runs(runs, tmp_path / "sum.zarr", metadata={"job": {"task": "none"}}, progress=False)
    (tmp_path / "sum.zarr/scores/c/0/0").unlink()
    told = CliRunner().invoke(main, ["info", str(tmp_path / "sum.zarr"), "--check"])
    assert told.exit_code == 1
    assert "Run its job again (pydvl-datainf run JOB.yaml), which recomputes" in told.output
