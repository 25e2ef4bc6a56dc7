"""`pydvl-datainf top --by`: training samples in the order of a measure of all test samples."""

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

from pydvl_datainf import DataInfInfluence, InfluenceRun, run_influences
from pydvl_datainf.cli import main
from report_pages import samples

N, M = 9, 4
INFLUENCES = {"mean": "on average", "median": "by median influence"}
INFLUENCES |= {"relative": "by relative influence"}
SUSPICIONS = {"self": "self-influence", "loss": "training loss", "suspicion": "suspicion"}
READ = {
    "mean": InfluenceRun.mean_influence,
    "median": InfluenceRun.median_influence,
    "relative": InfluenceRun.relative_influence,
    "self": InfluenceRun.self_influence,
    "loss": InfluenceRun.training_loss,
    "suspicion": InfluenceRun.suspicion,
}


def made(store, **settings):
    torch.manual_seed(0)
    influence = DataInfInfluence(nn.Linear(3, 2).double(), F.cross_entropy)
    ids = {"train": [f"t{i}" for i in range(N)]}
    run_influences(
        influence, samples(M, 2), samples(N, 1), store, ids=ids, progress=False, **settings
    )
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made(tmp_path_factory.mktemp("measures") / "run.zarr", self_influence=True)


def invoke(*arguments):
    return CliRunner().invoke(main, ["top", *map(str, arguments)])


def shown(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def rows_of(text):
    return re.findall(r"(\S+) (t\d)\b", text)


@pytest.mark.parametrize("by", INFLUENCES)
def test_influences_are_shown_at_both_ends(store, by):
    values = READ[by](InfluenceRun(store))
    order = np.argsort(values)
    chosen = [*order[:2], *order[::-1][:2]]
    text = shown(store, "--by", by, "--k", 2)
    assert rows_of(text) == [(f"{values[i]:+.2e}", f"t{i}") for i in chosen]
    for end in ("harmful", "helpful"):
        assert f"The 2 training samples most {end} {INFLUENCES[by]}" in text


@pytest.mark.parametrize("by", SUSPICIONS)
@pytest.mark.parametrize(("most", "sign"), [(None, -1), ("harmful", -1), ("helpful", 1)])
def test_suspicions_are_shown_largest_first(store, by, most, sign):
    values = READ[by](InfluenceRun(store))
    order = np.argsort(sign * values, kind="stable")[:3]
    text = shown(store, "--by", by, "--k", 3, *([] if most is None else ["--most", most]))
    assert rows_of(text) == [(f"{values[i]:.4g}", f"t{i}") for i in order]
    which = "largest" if sign < 0 else "smallest"
    assert text.startswith(f"The 3 training samples with the {which} {SUSPICIONS[by]}")
    assert "since the influence" not in text


def test_the_default_is_the_mean(store):
    assert shown(store) == shown(store, "--by", "mean", "--most", "both")


def test_a_measure_is_of_all_test_samples(store):
    result = invoke(store, "--by", "loss", "--test", 0)
    assert result.exit_code == 2
    assert "leave one out" in result.stderr


def test_an_unknown_measure_is_refused(store):
    result = invoke(store, "--by", "size")
    assert result.exit_code == 2
    assert "'size' is not one of 'mean', 'median'" in result.stderr


@pytest.mark.parametrize(
    ("by", "settings", "message"),
    [
        ("median", {"top_k": 2}, "kept the top 2 of each test sample"),
        ("relative", {}, "has no self-influences"),
        ("suspicion", {}, "has no self-influences"),
    ],
)
def test_what_a_run_has_not_is_told_with_the_remedy(tmp_path, by, settings, message):
    result = invoke(made(tmp_path / "run.zarr", **settings), "--by", by)
    assert result.exit_code == 1
    assert message in result.stderr
