"""Denoising: losses by diffusers' formula, rows by one backward pass per sample, and the noise."""

from collections.abc import Callable
from dataclasses import dataclass

import peft
import pytest
import torch
from torch import nn

import dense
import tiny
from denoised import (
    ATTENTION,
    CONVOLUTIONS,
    latents,
    loss_of,
    losses_of,
    noise_of,
    objective_of,
    pictures,
    with_noise,
)
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def described_latents(length):
    """With texts of three tokens."""
    batch = pictures(length, 4)
    del batch["class_labels"]
    return {**batch, "encoder_hidden_states": torch.randn(length, 3, 6)}


def with_own_adapters(model):
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=ATTENTION))
    return tiny.moved(model)


@dataclass(frozen=True)
class Case:
    """A model and its batches."""

    model: Callable[[], nn.Module]
    batch: Callable[..., dict[str, torch.Tensor]]


CASES = {
    "unet": Case(tiny.unet, pictures),
    "unet, lora": Case(lambda: tiny.lora(tiny.unet(), ATTENTION + CONVOLUTIONS), pictures),
    "texts": Case(tiny.conditional_unet, described_latents),
    "texts, lora": Case(
        lambda: tiny.lora(tiny.conditional_unet(), ATTENTION + CONVOLUTIONS), described_latents
    ),
    "texts, diffusers' own lora": Case(
        lambda: with_own_adapters(tiny.conditional_unet()), described_latents
    ),
    "dit": Case(tiny.dit, latents),
    "dit, lora": Case(lambda: tiny.lora(tiny.dit(), ATTENTION), latents),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(5)
    return CASES[request.param]


def rows_of(model, batch, objective, **kwargs):
    blocks = Blocks.from_model(model, "module")
    return blocks.flatten(CaptureEngine(model, objective, blocks, **kwargs).rows(batch))


def exact_rows(model, batch, objective):
    noisy = with_noise(batch, objective)
    return dense.gradients(model, loss_of(objective), noisy, tiny.names_of(model))


# The loss and its gradients


@pytest.mark.parametrize("timesteps", [1, 5, [0, 49, 7, 7]])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses_are_those_that_diffusers_trains_with(prediction, timesteps):
    torch.manual_seed(5)
    model, batch = tiny.unet().double().eval(), tiny.in_float64(pictures(3))
    objective = objective_of(prediction, timesteps)
    noisy = with_noise(batch, objective)
    with torch.no_grad():
        exact = torch.stack(dense.sample_losses(model, loss_of(objective), noisy))
        others = torch.stack(
            dense.sample_losses(model, loss_of(objective), {**noisy, "noise": -noisy["noise"]})
        )
    losses = losses_of(model, batch, objective)
    torch.testing.assert_close(losses, exact, rtol=1e-12, atol=0)
    assert ((losses - others).abs() > 1e-6).all()


def test_rows_are_those_of_one_backward_pass_per_sample(case):
    model, objective = case.model().double().eval(), objective_of()
    blocks = Blocks.from_model(model, "module")
    engine = CaptureEngine(model, objective, blocks, strict=True)
    for length in (3, 1, 2):
        batch = tiny.in_float64(case.batch(length))
        rows = blocks.flatten(engine.rows(batch))
        tiny.assert_rows_close(rows, exact_rows(model, batch, objective))


@pytest.mark.parametrize("name", ["unet, lora", "dit"])
@pytest.mark.parametrize("prediction", PREDICTIONS[1:])
def test_rows_of_other_predictions(name, prediction):
    torch.manual_seed(5)
    model, objective = CASES[name].model().double().eval(), objective_of(prediction)
    batch = tiny.in_float64(CASES[name].batch(2))
    rows = rows_of(model, batch, objective, strict=True)
    tiny.assert_rows_close(rows, exact_rows(model, batch, objective))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 8e-2)])
def test_rows_of_narrower_models(case, dtype, bound):
    """Plain passes, one a sample, are off by up to 6e-2 in bfloat16 too."""
    model, objective = case.model().to(dtype).eval(), objective_of()
    narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.batch(2).items()}
    rows = rows_of(model, narrow, objective)
    exact = exact_rows(dense.in_float64(model), tiny.in_float64(narrow), objective)
    assert rows.dtype == torch.float32
    assert ((rows - exact).norm(dim=1) <= bound * exact.norm(dim=1)).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: rows.roll(1, 0),
        lambda rows: rows / len(rows),
        lambda rows: rows + 1e-6 * rows.norm(dim=1, keepdim=True),
    ],
    ids=["samples swapped", "divided by the batch", "off by a millionth"],
)
def test_a_wrong_row_is_noticed(wrong):
    torch.manual_seed(5)
    model, batch = tiny.dit().double().eval(), tiny.in_float64(latents(3))
    exact = exact_rows(model, batch, objective_of())
    with pytest.raises(AssertionError):
        tiny.assert_rows_close(wrong(exact), exact)


# The noise


def test_a_sample_has_one_loss_and_row_in_every_batch_position_and_pass():
    torch.manual_seed(5)
    model, objective = tiny.conditional_unet().double().eval(), objective_of()
    batch = tiny.in_float64(described_latents(4))
    losses, rows = losses_of(model, batch, objective), rows_of(model, batch, objective)
    assert torch.equal(losses_of(model, batch, objective), losses)
    for order in ([3, 1, 0, 2], [2], [1, 3]):
        part = {k: v[order] for k, v in batch.items()}
        torch.testing.assert_close(losses_of(model, part, objective), losses[order])
        tiny.assert_rows_close(rows_of(model, part, objective), rows[order])


def test_each_seed_and_timestep_has_noise_of_its_own():
    """Also seeds that agree in their lower 32 bits, which is all that PyTorch's generator sees."""
    powers = [2**k for k in (1, 8, 31, 32, 33, 40, 62)]
    seeds = torch.tensor([0, 1, *powers, *(-p for p in (1, *powers)), 2**63 - 1, -(2**63)])
    assert torch.equal(
        torch.randn(9, generator=torch.Generator().manual_seed(0)),
        torch.randn(9, generator=torch.Generator().manual_seed(2**32)),
    )
    noise = noise_of({"images": torch.zeros(len(seeds), 3, 16, 16), "seed": seeds}, [0, 1, 49])
    flat = noise.reshape(3 * len(seeds), 3 * 16 * 16)
    similarity = torch.corrcoef(flat).fill_diagonal_(0)
    assert similarity.abs().max() < 0.2
    assert flat.mean(1).abs().max() < 0.2
    assert (flat.std(1) - 1).abs().max() < 0.1


def test_noise_depends_on_the_seed_alone():
    """Not on the seed's type, the image, its precision or torch's random numbers."""
    batch = {"images": torch.randn(3, 3, 4, 4), "seed": torch.tensor([3, 200, 3])}
    noise = noise_of(batch, [5])
    assert torch.equal(noise[0], noise[2])
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(noise_of({**batch, "seed": batch["seed"].to(dtype)}, [5]), noise)
    torch.manual_seed(99)
    double = {**batch, "images": torch.zeros(3, 3, 4, 4).double()}
    assert torch.equal(noise_of(double, [5]), noise.double())


def test_torch_random_numbers_are_left_alone():
    model, batch = tiny.unet().eval(), pictures(2)
    state = torch.get_rng_state()
    losses_of(model, batch, objective_of())
    assert torch.equal(torch.get_rng_state(), state)
