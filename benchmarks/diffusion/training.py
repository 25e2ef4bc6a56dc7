"""Training of base and adapters, kept on disk under a hash of all that they depend on."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from denoiser import ANY
from diffusers import DDPMScheduler
from pictures import Pictures
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf import Denoising

WARM_UP = 0.05  # of all steps; then the learning rate falls linearly to zero
REPORTS = 10  # parts of the training, each with its mean loss


def trained(
    kind: str,
    model: nn.Module,
    schedule: DDPMScheduler,
    pictures: Pictures,
    labels: Tensor,
    settings: Mapping[str, Any],
    cache: Path,
) -> tuple[list[float], bool]:
    """Trains what requires gradients, in place, or reads it where the same was trained before.

    Returns:
        The mean loss in each tenth of the steps, and whether it was read.
    """
    content = pictures.pixels.numpy().tobytes() + labels.numpy().tobytes()
    content += json.dumps(settings, sort_keys=True).encode()
    file = cache / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    history = file.with_suffix(".json")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    cached = history.exists()
    if cached:
        model.load_state_dict(load_file(file), strict=False)
        losses = json.loads(history.read_text())["losses"]
    else:
        losses = train(kind, model, schedule, pictures, labels, settings)
        cache.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach() for name, p in parameters.items()}, file)
        history.write_text(json.dumps({**settings, "losses": losses}, indent=1))
    model.eval()
    return losses, cached


def train(
    kind: str,
    model: nn.Module,
    schedule: DDPMScheduler,
    pictures: Pictures,
    labels: Tensor,
    settings: Mapping[str, Any],
) -> list[float]:
    """AdamW on the squared error of the noise, at one random timestep a picture and step."""
    steps, parameters = settings["steps"], [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (WARM_UP * steps)) * (1 - step / steps)
    )
    random, losses = torch.Generator().manual_seed(settings["seed"]), []
    patches = pictures.patches
    model.train()
    for chosen in tqdm(shuffled(len(pictures), settings, random), kind, steps, unit="batch"):
        x, label = patches[chosen], labels[chosen].clone()
        label[torch.rand(len(label), generator=random) < settings["unlabelled"]] = ANY
        t = torch.randint(len(schedule.alphas_cumprod), (len(x),), generator=random)
        noise = torch.randn(x.shape, generator=random)
        predicted = model(schedule.add_noise(x, noise, t), t, class_labels=label).sample
        loss = (predicted - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    optimizer.zero_grad()
    return [float(part.mean()) for part in torch.tensor(losses).chunk(REPORTS)]


def shuffled(n: int, settings: Mapping[str, Any], random: torch.Generator) -> Iterator[Tensor]:
    """Random batches of positions, as many as there are steps, epoch after epoch."""
    size, left = settings["batch_size"], settings["steps"]
    while left:
        for chosen in torch.randperm(n, generator=random).split(size)[:left]:
            left -= 1
            yield chosen


@torch.no_grad()
def mean_loss(model: nn.Module, objective: Denoising, batches: list[dict[str, Tensor]]) -> float:
    """The mean over samples of the objective, the model being as it is."""
    return float(torch.cat([objective.losses(model, batch) for batch in batches]).mean())
