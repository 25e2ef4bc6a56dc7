"""Denoising: timesteps and noise levels, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

import tiny
from denoised import latents, objective_of
from pydvl_datainf import DataInfInfluence, Denoising, ModelError, ObjectiveError
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import FunctionalEngine
from pydvl_datainf.runner.worker_inputs import Inputs


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        (1, (25,)),
        (2, (12, 37)),
        (5, (5, 15, 25, 35, 45)),
        (50, tuple(range(50))),
        ([3], (3,)),
        (range(0, 50, 20), (0, 20, 40)),
        (iter([49, 0]), (49, 0)),
        (torch.tensor([4, 4]), (4, 4)),
    ],
)
def test_timesteps(timesteps, expected):
    assert objective_of(timesteps=timesteps).timesteps == expected


def test_an_objective_is_what_the_scheduler_says():
    scheduler = DDPMScheduler(30, beta_schedule="scaled_linear", prediction_type="v_prediction")
    objective = Denoising.from_scheduler(scheduler, 3, images="latents")
    assert (objective.prediction, objective.images) == ("v_prediction", "latents")
    torch.testing.assert_close(objective.alphas, scheduler.alphas_cumprod.double(), rtol=0, atol=0)


def words(objective):
    """How a run's fingerprint tells of it."""
    influence = DataInfInfluence(nn.Linear(2, 2), objective)
    return Inputs(influence, [], None).describe().objective


def test_a_run_is_known_by_timesteps_and_noise_levels():
    alphas = torch.linspace(0.9, 0.1, 50, dtype=torch.float64)
    told = words(Denoising(alphas, 2))
    assert "timesteps=(12, 37)" in told
    assert "alphas=" in told
    assert told == words(Denoising(alphas.tolist(), [12, 37]))
    other = alphas.clone()
    other[7] += 1e-15
    others = [
        Denoising(other, 2),
        Denoising(alphas, 3),
        Denoising(alphas, [37, 12]),
        Denoising(alphas, 2, "sample"),
        Denoising(alphas, 2, images="latents"),
    ]
    assert len({told, *map(words, others)}) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphas": [[0.5]]}, "list of numbers from 0 to 1"),
        ({"alphas": [0.5, 1.1]}, "list of numbers from 0 to 1"),
        ({"alphas": [0.5, float("nan")]}, "list of numbers from 0 to 1"),
        ({"alphas": [], "timesteps": 1}, "from 1 to 0"),
        ({"timesteps": 0}, "from 1 to 3, got 0"),
        ({"timesteps": 4}, "from 1 to 3, got 4"),
        ({"timesteps": []}, r"from 0 to 2, got \(\)"),
        ({"timesteps": [0, 3]}, r"from 0 to 2, got \(0, 3\)"),
        ({"timesteps": [-1]}, r"from 0 to 2, got \(-1,\)"),
        ({"timesteps": [0.5]}, "list of integers, got"),
        ({"timesteps": 1.5}, "list of integers, got"),
        ({"prediction": "flow"}, "prediction must be one of"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ObjectiveError, match=message):
        Denoising(**{"alphas": [0.9, 0.5, 0.1], "timesteps": 2, **settings})


def test_flow_matching_is_refused():
    with pytest.raises(ObjectiveError, match="no alphas_cumprod"):
        Denoising.from_scheduler(FlowMatchEulerDiscreteScheduler())


BATCH = {"images": torch.zeros(3, 2, 4, 4), "seed": torch.arange(3)}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": BATCH["images"]}, r"'images' and 'seed', got \['images'\]"),
        ({"pixels": BATCH["images"], "seed": BATCH["seed"]}, "'images' and 'seed'"),
        ((BATCH["images"], BATCH["seed"]), r"an \(x, y\) pair"),
        ({**BATCH, "images": torch.zeros(3, 2, 4, 4, dtype=torch.uint8)}, "must be floating"),
        ({**BATCH, "images": torch.zeros(3, 4)}, r"shape \(B, C, H, W\)"),
        ({**BATCH, "seed": torch.zeros(3)}, "'seed' must be integers of shape"),
        ({**BATCH, "seed": torch.zeros(3, 1, dtype=torch.long)}, "'seed' must be integers"),
    ],
)
def test_batches_that_are_refused(batch, message):
    with pytest.raises(ObjectiveError, match=message):
        Denoising([0.5], 1).losses(nn.Identity(), batch)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 2, 4, 1), (3, 2, 1, 1)])
def test_predictions_of_another_shape_are_refused(shape):
    """They would be compared all the same, each number with many."""

    def model(noisy, timesteps):
        return SimpleNamespace(sample=torch.zeros(shape))

    with pytest.raises(ObjectiveError, match=r"shape \(3, 2, 4, 4\).*got"):
        Denoising([0.5], 1).losses(model, BATCH)


def test_noise_of_single_samples_cannot_be_mapped_by_torch_func():
    model = tiny.dit().eval()
    engine = FunctionalEngine(model, objective_of(), Blocks.from_model(model, "module"))
    with pytest.raises(ModelError, match=r'cannot map.*Use gradients="auto"'):
        engine.rows(latents(2))
