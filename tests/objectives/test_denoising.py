"""Denoising: losses by diffusers' formula, rows by one backward pass per sample, and the noise."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import peft
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from distributed import Client, LocalCluster
from torch import nn
from torch.nn import functional as F

import dense
import tiny
from pydvl_datainf import DataInfInfluence, Denoising, ModelError, ObjectiveError, run_influences
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients import CaptureEngine, FunctionalEngine
from pydvl_datainf.runner.worker_inputs import Inputs

PREDICTIONS = ["epsilon", "v_prediction", "sample"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2"]


def pictures(length, channels=3):
    """Images of 5 classes, with seeds."""
    return {
        "images": torch.randn(length, channels, 4, 4),
        "seed": torch.randint(-(2**40), 2**40, (length,)),
        "class_labels": torch.randint(0, 5, (length,)),
    }


def latents(length):
    return pictures(length, 4)


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


def scheduler_of(prediction="epsilon"):
    return DDPMScheduler(50, prediction_type=prediction)


def objective_of(prediction="epsilon", timesteps=2):
    return Denoising.from_scheduler(scheduler_of(prediction), timesteps)


def noise_of(batch, timesteps):
    """The noise (B, timesteps, C, H, W): what a model sees where no signal is left."""
    seen = []

    def keep(noisy, timesteps, **conditions):
        seen.append(noisy)
        return SimpleNamespace(sample=noisy)

    Denoising([0.0] * 50, timesteps).losses(keep, batch)
    return torch.stack(seen, 1)


def with_noise(batch, objective):
    return {**batch, "noise": noise_of(batch, objective.timesteps)}


def loss_of(objective):
    """The training loss by diffusers' scheduler; batches have their noise."""
    scheduler = scheduler_of(objective.prediction)

    def loss(model, batch):
        x, errors = batch["images"], []
        conditions = {k: v for k, v in batch.items() if k not in ("images", "seed", "noise")}
        for i, timestep in enumerate(objective.timesteps):
            noise, t = batch["noise"][:, i], torch.tensor([timestep])
            target = {
                "epsilon": noise,
                "v_prediction": scheduler.get_velocity(x, noise, t),
                "sample": x,
            }[objective.prediction]
            predicted = model(scheduler.add_noise(x, noise, t), t, **conditions).sample
            errors.append(F.mse_loss(predicted[:, : x.shape[1]], target))
        return sum(errors) / len(errors)

    return loss


def rows_of(model, batch, objective, **kwargs):
    blocks = Blocks.from_model(model, "module")
    return blocks.flatten(CaptureEngine(model, objective, blocks, **kwargs).rows(batch))


def exact_rows(model, batch, objective):
    noisy = with_noise(batch, objective)
    return dense.gradients(model, loss_of(objective), noisy, tiny.names_of(model))


def losses_of(model, batch, objective):
    with torch.no_grad():
        return objective.losses(model, batch)


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


# Settings


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


# Runs


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


ROWS = [("memory", 1e-9), ("recompute", 1e-9), ("zarr", 1e-3)]


@pytest.mark.parametrize(("rows", "bound"), ROWS)
def test_scores_are_those_of_the_formula(tmp_path, task, rows, bound):
    *given, exact = task
    done = run_influences(*given, tmp_path / "run.zarr", rows=rows, progress=False)
    assert done.plan.rows == rows
    tiny.assert_scores_close(done.scores[...], exact, bound)


def test_other_noise_gives_other_scores(tmp_path, task):
    """The control of the tests beside it."""
    influence, test, train, exact = task
    other = [{**batch, "seed": batch["seed"] + 1} for batch in test]
    done = run_influences(influence, other, train, tmp_path / "run.zarr", progress=False)
    with pytest.raises(AssertionError):
        tiny.assert_scores_close(done.scores[...], exact, 1e-2)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "bound"), ROWS[1:])
def test_dask_workers_agree(tmp_path, task, client, rows, bound):
    """So other processes draw the same noise."""
    *given, exact = task
    store = tmp_path / "run.zarr"
    done = run_influences(*given, store, client=client, rows=rows, progress=False)
    tiny.assert_scores_close(done.scores[...], exact, bound)
