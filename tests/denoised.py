"""Batches of images with their noise, and the loss that diffusers trains with."""

from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from pydvl_datainf import Denoising

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


def losses_of(model, batch, objective):
    with torch.no_grad():
        return objective.losses(model, batch)
