"""Preference: scores of runs, against the dense oracle."""

import pytest
import torch

import tiny
from objective_runs import ROWS, assert_run_agrees
from preferred import loss_of_pair, pairs
from pydvl_datainf import DataInfInfluence, Preference, run_influences


@pytest.fixture(scope="module")
def task():
    """An influence model of a tuned Llama, test and training pairs, and scores by the oracle."""
    torch.manual_seed(4)
    model = tiny.lora(tiny.llama(), ["q_proj", "v_proj"]).double().eval()
    test, train = ([pairs(length) for length in lengths] for lengths in ((3, 2), (4, 4, 1)))
    whole = ({k: torch.cat([b[k] for b in side]) for k in side[0]} for side in (test, train))
    exact = tiny.influences(model, loss_of_pair, *whole)
    return DataInfInfluence(model, Preference()), test, train, exact


@pytest.mark.parametrize(("rows", "bound"), ROWS)
def test_scores_are_those_of_the_formula(tmp_path, task, rows, bound):
    assert_run_agrees(task, tmp_path / "run.zarr", rows, bound)


def test_another_beta_gives_other_scores(tmp_path, task):
    """The control of the tests beside it."""
    influence, test, train, exact = task
    other = DataInfInfluence(influence.model, Preference(0.11))
    done = run_influences(other, test, train, tmp_path / "run.zarr", progress=False)
    with pytest.raises(AssertionError):
        tiny.assert_scores_close(done.scores[...], exact, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "bound"), ROWS[1:])
def test_dask_workers_agree(tmp_path, task, client, rows, bound):
    assert_run_agrees(task, tmp_path / "run.zarr", rows, bound, client=client)
