"""Denoising: scores of runs, against the dense oracle."""

import pytest
import torch

import tiny
from denoised import ATTENTION, loss_of, objective_of, pictures, with_noise
from objective_runs import ROWS, assert_run_agrees
from pydvl_datainf import DataInfInfluence, run_influences


@pytest.fixture(scope="module")
def task():
    """An influence model of a tuned UNet, test and training data, and the scores by the oracle."""
    torch.manual_seed(5)
    model = tiny.lora(tiny.unet(), ATTENTION).double().eval()
    objective = objective_of()
    test, train = (
        [tiny.in_float64(pictures(length)) for length in lengths] for lengths in ((2, 1), (3, 3, 1))
    )
    noisy = [with_noise(tiny.joined(*side), objective) for side in (test, train)]
    exact = tiny.influences(model, loss_of(objective), *noisy)
    return DataInfInfluence(model, objective), test, train, exact


@pytest.mark.parametrize(("rows", "bound"), ROWS)
def test_scores_are_those_of_the_formula(tmp_path, task, rows, bound):
    assert_run_agrees(task, tmp_path / "run.zarr", rows, bound)


def test_other_noise_gives_other_scores(tmp_path, task):
    """The control of the tests beside it."""
    influence, test, train, exact = task
    other = [{**batch, "seed": batch["seed"] + 1} for batch in test]
    done = run_influences(influence, other, train, tmp_path / "run.zarr", progress=False)
    with pytest.raises(AssertionError):
        tiny.assert_scores_close(done.scores[...], exact, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "bound"), ROWS[1:])
def test_dask_workers_agree(tmp_path, task, client, rows, bound):
    """So other processes draw the same noise."""
    assert_run_agrees(task, tmp_path / "run.zarr", rows, bound, client=client)
