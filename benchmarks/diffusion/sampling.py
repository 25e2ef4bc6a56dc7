"""Pictures by the tuned model, and a judge that tells what they show."""

from typing import Any

import numpy as np
import torch
from denoiser import labels_of
from diffusers import DDIMScheduler, DDPMScheduler
from pictures import Pictures, to_pixels
from sklearn.svm import SVC
from tasks import NAMES, TUNED, drawn_for
from torch import Tensor, nn
from tqdm.auto import tqdm

JUDGED_ON = 1000  # pictures of each class


def generated(
    model: nn.Module,
    schedule: DDPMScheduler,
    every: Pictures,
    unseen: Pictures,
    settings: dict[str, Any],
) -> tuple[Pictures, dict[str, Any]]:
    """Pictures with their classes, and how far to trust those.

    With own labels the class is what was asked for, with a shared one what the judge sees.
    """
    task, seed = settings["task"], settings["seed"]
    judge = Judge(drawn_for(task, every, JUDGED_ON, seed + 1))
    asked = torch.tensor(TUNED).repeat(settings["generate"])[: settings["generate"]]
    labels, steps = labels_of(asked, settings["labels"]), settings["sampling_steps"]
    pixels = sampled(model, schedule, labels, steps, seed)
    seen, known = judge(pixels), drawn_for(task, unseen, JUDGED_ON, seed + 1)
    judgement = {
        "share right on unseen pictures": _share(judge(known.pixels), known.classes),
        "seen in generated pictures": {
            name: int((seen == c).sum()) for c, name in NAMES[task].items()
        },
    }
    if settings["labels"] == "shared":
        return Pictures(pixels, seen), judgement
    return Pictures(pixels, asked), judgement | {"share seen as asked for": _share(seen, asked)}


@torch.no_grad()
def sampled(
    model: nn.Module, schedule: DDPMScheduler, labels: Tensor, steps: int, seed: int
) -> Tensor:
    """A picture for each label by DDIM (Song et al., ICLR 2021), (m, 1, 28, 28)."""
    ddim = DDIMScheduler.from_config(schedule.config)
    ddim.set_timesteps(steps)
    random = torch.Generator().manual_seed(seed)
    x = torch.randn((len(labels), 4, 14, 14), generator=random)
    for t in tqdm(ddim.timesteps, "Sampling", unit="step"):
        noise = model(x, t.expand(len(labels)), class_labels=labels).sample
        x = ddim.step(noise, t, x).prev_sample
    return to_pixels(x).clamp(-1, 1)


class Judge:
    """A support vector machine on pixels."""

    def __init__(self, known: Pictures):
        self.machine = SVC(C=10).fit(_flat(known.pixels), known.classes.numpy())

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.machine.predict(_flat(pixels)))


def _flat(pixels: Tensor) -> np.ndarray:
    return pixels.flatten(1).numpy()


def _share(found: Tensor, wanted: Tensor) -> float:
    return float((found == wanted).double().mean())
