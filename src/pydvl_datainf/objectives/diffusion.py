"""The losses of diffusion models."""

import operator
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Denoising:
    r"""Squared error of a diffusion model at chosen noise levels, averaged over them.

    With ᾱ_t the share of the signal at timestep t, x a clean image (or its latents) and ε noise,
    the model sees x_t = √ᾱ_t x + √(1−ᾱ_t) ε. The loss of a sample is

        (1/|T|) Σ_{t ∈ T} mean over entries of (model(x_t, t, condition) − target_t)²

    where the target is ε ("epsilon"), √ᾱ_t ε − √(1−ᾱ_t) x ("v_prediction") or x ("sample").
    Sources: Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Salimans and Ho,
    "Progressive Distillation", ICLR 2022.

    Noise is drawn from the seed of each sample and the timestep, so a sample has the same loss in
    every batch, process and pass. One seed for all samples compares them under the same noise. The
    model runs once for each timestep, and activations of all are held until the gradients are
    there. A batch is a mapping with the images, (B, C, H, W), `seed`,
    integers (B,), and conditions by the names under which the model takes them: `class_labels`,
    `encoder_hidden_states` and the like.

    Args:
        alphas: ᾱ_t for t = 0, 1, ..., between 0 and 1: `alphas_cumprod` of a diffusers scheduler.
        timesteps: which are averaged: positions in `alphas`, or how many, evenly spaced, each in
            the middle of its part.
        prediction: what the model predicts.
        images: the key of the images in the batch.

    Raises:
        ObjectiveError: if a setting is out of range.
    """

    def __init__(
        self,
        alphas: Tensor | Sequence[float],
        timesteps: int | Iterable[int] = 8,
        prediction: Prediction = "epsilon",
        images: str = "images",
    ):
        self.alphas = torch.as_tensor(alphas, dtype=torch.float64)
        if self.alphas.ndim != 1 or not bool(((self.alphas >= 0) & (self.alphas <= 1)).all()):
            raise ObjectiveError("alphas must be a list of numbers from 0 to 1, one a timestep.")
        if prediction not in PREDICTIONS:
            raise ObjectiveError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}.")
        self.timesteps = _chosen(timesteps, len(self.alphas))
        self.prediction: Prediction = prediction
        self.images = images

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, timesteps: int | Iterable[int] = 8, images: str = "images"
    ) -> "Denoising":
        """The objective that a diffusers scheduler trains with.

        Args:
            scheduler: has `alphas_cumprod` and `config.prediction_type`.
            timesteps: as above.
            images: as above.

        Returns:
            The objective.

        Raises:
            ObjectiveError: if the scheduler has no such noise levels, as those of flow matching.
        """
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise ObjectiveError(
                f"{type(scheduler).__name__} has no alphas_cumprod. Write an objective of your own "
                "for other kinds of noise."
            )
        return cls(alphas, timesteps, scheduler.config.prediction_type, images)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each sample.

        Args:
            model: called with the noisy images, timesteps (B,) and the conditions; returns an
                object with `sample`, of the images' shape or with more channels, the first of
                which count.
            batch: a mapping of tensors.

        Returns:
            Losses, shape (B,).

        Raises:
            ObjectiveError: if images, seeds or predictions are missing or of another shape or type.
        """
        x, seeds, conditions = self._parted(batch)
        losses = [self._at(t, model, x, seeds, conditions) for t in self.timesteps]
        return torch.stack(losses).mean(0)

    def _at(
        self, t: int, model: nn.Module, x: Tensor, seeds: Sequence[int], conditions: Any
    ) -> Tensor:
        noise = _noise(seeds, t, x)
        signal, rest = self.alphas[t].sqrt().item(), (1 - self.alphas[t]).sqrt().item()
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - rest * x,
            "sample": x,
        }[self.prediction]
        timesteps = torch.full((len(x),), t, device=x.device)
        sample: Tensor = model(signal * x + rest * noise, timesteps, **conditions).sample
        predicted = sample[:, : x.shape[1]]  # the rest is a variance, which has no part in this
        if predicted.shape != x.shape:
            raise ObjectiveError(
                f"The model must predict '{self.images}' of shape {tuple(x.shape)}, at least in "
                f"its first channels; got {tuple(sample.shape)}."
            )
        wide = torch.promote_types(sample.dtype, torch.float32)
        error = predicted.to(wide) - target.to(wide)
        return error.square().flatten(1).mean(1)

    def _parted(self, batch: Batch) -> tuple[Tensor, list[int], dict[str, Tensor]]:
        """Images, seeds and conditions of a batch."""
        if not isinstance(batch, Mapping) or not {self.images, "seed"} <= batch.keys():
            got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
            raise ObjectiveError(
                f"Denoising needs a mapping with the keys '{self.images}' and 'seed', got {got}. "
                "A seed is an integer for each sample; it may be the same for all."
            )
        x, seeds = batch[self.images], batch["seed"]
        if not x.is_floating_point() or x.ndim < 3:
            raise ObjectiveError(
                f"'{self.images}' must be floating and of shape (B, C, H, W), got {x.dtype} of "
                f"shape {tuple(x.shape)}."
            )
        if seeds.ndim != 1 or seeds.is_floating_point():
            raise ObjectiveError(
                f"'seed' must be integers of shape (B,), got {seeds.dtype} of shape "
                f"{tuple(seeds.shape)}."
            )
        conditions = {n: t for n, t in batch.items() if n not in (self.images, "seed")}
        return x, seeds.tolist(), conditions


def _chosen(timesteps: int | Iterable[int], count: int) -> tuple[int, ...]:
    if isinstance(timesteps, int):
        if not 1 <= timesteps <= count:
            raise ObjectiveError(f"timesteps must be from 1 to {count}, got {timesteps}.")
        return tuple((2 * i + 1) * count // (2 * timesteps) for i in range(timesteps))
    try:
        chosen = tuple(operator.index(t) for t in timesteps)
    except TypeError:
        raise ObjectiveError(
            f"timesteps must be a number or a list of integers, got {timesteps!r}."
        ) from None
    if not chosen or not all(0 <= t < count for t in chosen):
        raise ObjectiveError(f"timesteps must be positions from 0 to {count - 1}, got {chosen}.")
    return chosen


def _noise(seeds: Sequence[int], t: int, like: Tensor) -> Tensor:
    """Standard normal noise of the samples' shape; drawn on the CPU, so that devices agree."""
    generator = torch.Generator()
    shape = like.shape[1:]
    draws = []
    for seed in seeds:
        # PyTorch's generator sees only the lower 32 bits of what it is given.
        low = seed if 0 <= seed < 2**32 else zlib.crc32(str(seed).encode())
        generator.manual_seed((low * 1_000_003 + t) % 2**32)
        draws.append(torch.randn(shape, generator=generator))
    return torch.stack(draws).to(like.device, like.dtype)
