"""What a report says of the retrainings that are kept beside a run."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from pydvl_datainf import DataInfInfluence, InfluenceRun, run_influences
from pydvl_datainf.report import Bounds, write_report
from pydvl_datainf.report.retraining import retraining_of
from pydvl_datainf.yardstick import validate
from report_in_browser import NEEDS_BROWSER, Watched, rows


def train(indices, seed):
    """Losses that go up with what is missing, and for the last test sample do not change."""
    values = np.sin(np.outer([1.0, 2.0, 3.0], np.arange(12)))[:, indices].sum(axis=1)
    return np.array([5, 5, 0]) + np.array([1, 1, 0]) * (values + 0.1 * seed * len(indices))


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    data = torch.randn(12, 2), torch.randint(0, 2, (12,))
    test = torch.randn(3, 2), torch.randint(0, 2, (3,))
    influence = DataInfInfluence(nn.Linear(2, 2), nn.functional.cross_entropy)
    return run_influences(influence, test, data, tmp_path / "secret.zarr", progress=False)


def test_without_retrainings_nothing_is_said(run, tmp_path):
    assert retraining_of(run) is None
    text = write_report(run, tmp_path / "report.html").read_text("utf-8")
    assert "Agreement with retraining" not in text


def test_retrainings_beside_the_run_are_put_into_words(run, tmp_path):
    found = validate(run, train, subsets=12, progress=False)
    said = retraining_of(run)
    assert said.value == f"{found.lds:.2f} ± {found.error:.2f}"
    sentences = " ".join(said.says)
    assert "on 12 random halves of the training data, 2 times on each" in sentences
    assert f"A perfect prediction would reach {found.ceiling:.2f}" in sentences
    assert f"changes by {found.slope:.2g} ± {found.slope_error:.1g} times" in sentences
    assert "Left out, since no retraining changed their loss: 1." in sentences
    text = write_report(run, tmp_path / "report.html", bounds=Bounds(k=2)).read_text("utf-8")
    assert f"Agreement with retraining: {said.value}" in text


def job(**fields):
    return {"task": "causal-lm", "model": "m", "max_length": 512, "train": "a", **fields}


@pytest.mark.parametrize(
    ("recipe", "other"),
    [
        ({"job": {"task": "causal-lm", "model": "m", "max_length": 512}}, ""),
        ({"job": {"task": "causal-lm", "model": "m", "max_length": 7}}, "max_length"),
        ({"job": {"task": "causal-lm", "max_length": 512, "beta": 0.1}}, "beta, model"),
        ({"job": "in words"}, ""),
        (["job"], ""),
    ],
)
def test_retrainings_of_another_job_are_not_those_of_the_run(tmp_path, recipe, other):
    data = torch.randn(12, 2), torch.randint(0, 2, (12,))
    test = torch.randn(3, 2), torch.randint(0, 2, (3,))
    influence = DataInfInfluence(nn.Linear(2, 2), nn.functional.cross_entropy)
    settings = {"metadata": {"run": {"job": job()}}, "progress": False}
    run = run_influences(influence, test, data, tmp_path / "run.zarr", **settings)
    validate(run, train, subsets=12, recipe=json.dumps(recipe), progress=False)
    said = retraining_of(run)
    assert (said.value == "not known") == bool(other)
    assert (f"they are of another job: {other} differ." in said.says[0]) == bool(other)


def as_predicted(run, size):
    """Trains as the scores of a run say, times a size."""
    scores = np.asarray(run.scores[...], np.float64)

    def train(indices, seed):
        signs = np.full(scores.shape[1], 1.0)
        signs[indices] = -1
        return 5 + size * scores @ signs / scores.shape[1]

    return train


@pytest.mark.parametrize(("size", "unit"), [(1, 1 / 12), (0.6, 1 / 12), (0.3, None), (3, None)])
def test_influences_are_changes_of_loss_where_retraining_says_so(run, size, unit):
    validate(run, as_predicted(run, size), subsets=12, progress=False)
    said = retraining_of(run)
    assert said.unit == unit
    told = {1 / 12: "leaving out one training sample adds to the loss", None: "for their order"}
    assert told[unit] in " ".join(said.says)


@pytest.mark.slow
@NEEDS_BROWSER
def test_the_page_shows_what_leaving_a_sample_out_adds(browser, run, tmp_path):
    validate(run, as_predicted(run, 1), subsets=12, progress=False)
    watched = Watched(browser, write_report(run, tmp_path / "page.html"))
    for end in ("helpful", "harmful"):
        shown = rows(watched.page, end)
        changes = [float(row["loss without it"]) * 12 for row in shown]
        assert changes == pytest.approx([float(row["influence"]) for row in shown], rel=0.01)
    watched.close()


def test_with_one_seed_there_is_no_ceiling(run):
    validate(run, train, subsets=12, seeds=1, progress=False)
    assert "perfect prediction" not in " ".join(retraining_of(run).says)


def test_retrainings_that_cannot_be_used_are_told_without_their_place(run):
    validate(run, train, subsets=12, progress=False)
    chunk = run.store.path.with_name("secret.zarr.bank") / "losses" / "c" / "3" / "0" / "0"
    chunk.write_bytes(b"")
    said = retraining_of(InfluenceRun.open(run.store.path))
    assert said.value == "not known"
    assert "secret" not in said.says[0]
    assert "Call validate of pydvl_datainf.yardstick again" in said.says[0]
