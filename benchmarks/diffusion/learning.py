"""The base on six classes, its adapters on what is new, and what the model then knows."""

from pathlib import Path
from typing import Any

import denoiser
import torch
import training
from borrowed import influential
from denoiser import labels_of
from diffusers import DDPMScheduler
from pictures import Pictures, of_classes, to_batches
from tasks import BASE
from torch import nn

from pydvl_datainf import Denoising

TUNING = "steps learning_rate batch_size seed rank alpha targets labels"
Settings = dict[str, Any]


def trained_base(
    schedule: DDPMScheduler, every: Pictures, settings: Settings, cache: Path
) -> tuple[nn.Module, list[float]]:
    """A UNet that knows the first six classes by their labels, and all of them without."""
    torch.manual_seed(settings["seed"])
    unet, known = denoiser.new_unet(), of_classes(every, BASE)
    chosen = {
        "steps": settings["base_steps"],
        "learning_rate": settings["base_learning_rate"],
        "batch_size": 32,
        "unlabelled": 0.2,
        "seed": settings["seed"],
    }
    losses, _ = training.trained("base", unet, schedule, known, known.classes, chosen, cache)
    return unet, losses


def tuned(
    unet: nn.Module,
    schedule: DDPMScheduler,
    train: Pictures,
    held_out: Pictures,
    settings: Settings,
    cache: Path,
) -> tuple[nn.Module, dict[str, Any]]:
    """The base with tuned adapters, and the losses before and after."""
    torch.manual_seed(settings["seed"])
    model = denoiser.with_lora(unet, settings["rank"], settings["alpha"], settings["targets"])
    kind = settings["labels"]
    sets = {
        name: to_batches(pictures, labels_of(pictures.classes, kind), 10**7, 32)
        for name, pictures in (("training", train), ("held out", held_out))
    }
    objective = Denoising.from_scheduler(schedule, settings["timesteps"])
    before = {name: training.mean_loss(model, objective, each) for name, each in sets.items()}
    chosen = {name: settings[name] for name in TUNING.split()} | {"unlabelled": 0.0}
    labels = labels_of(train.classes, kind)
    losses, _ = training.trained("adapter", model, schedule, train, labels, chosen, cache)
    after = {name: training.mean_loss(model, objective, each) for name, each in sets.items()}
    return model, {"tuning_loss_by_tenth": losses, "loss": {"before": before, "after": after}}


def learning(
    schedule: DDPMScheduler,
    every: Pictures,
    train: Pictures,
    held_out: Pictures,
    settings: Settings,
    cache: Path,
    seconds: dict[str, float],
) -> tuple[nn.Module, dict[str, Any]]:
    """Both, with their times (of reading, where they were trained before)."""
    with influential.timed("base", seconds):
        unet, losses = trained_base(schedule, every, settings, cache)
    with influential.timed("tuning and its losses", seconds):
        model, learnt = tuned(unet, schedule, train, held_out, settings, cache)
    return model, {"base_loss_by_tenth": losses, **learnt}
