"""A plain loop that tunes a model on some samples, as a job's `training` says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pydvl_datainf.batches import batch_to
from pydvl_datainf.errors import ModelError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.jobfile.data import JobSamples
from pydvl_datainf.jobfile.schema import Training
from pydvl_datainf.objectives import Objective
from pydvl_datainf.objectives.protocol import check_losses

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of some samples, as many at once as go into `max_tokens`.

    Args:
        samples: from which some are taken.
        objective: gives one loss for each.
        max_tokens: at once, padding included; a longer sample is taken by itself.
        lengths: of the samples, in tokens.
    """

    samples: JobSamples
    objective: Objective
    max_tokens: int
    lengths: Sequence[int]

    def parts(self, model: nn.Module, positions: Sequence[int]) -> Iterator[Tensor]:
        """Computes losses.

        Args:
            model: in whichever mode.
            positions: of the samples, B of them.

        Yields:
            Losses of some of them, in their order, each with a graph of its own.
        """
        device = next(model.parameters()).device
        for part in self._cut(positions):
            batch = batch_to(self.samples.collate([self.samples[i] for i in part]), device)
            yield check_losses(self.objective.losses(model, batch), batch)

    def _cut(self, positions: Sequence[int]) -> Iterator[Sequence[int]]:
        start, longest = 0, 0
        for stop, i in enumerate(positions):
            longest = max(longest, self.lengths[i])
            if stop > start and longest * (stop + 1 - start) > self.max_tokens:
                yield positions[start:stop]
                start, longest = stop, self.lengths[i]
        yield positions[start:]


@torch.enable_grad()
def tune(
    model: nn.Module,
    losses: Losses,
    positions: Sequence[int],
    training: Training,
    seed: int,
    bar: Any,
) -> None:
    """Tunes what requires gradients, in place; the model is then in evaluation mode.

    Each step goes down the mean of its batch's losses. Batches are those of a `DataLoader` that
    shuffles by a generator of its own; dropout draws from torch's global one.

    Args:
        model: that is tuned.
        losses: of the training data.
        positions: of the samples on which it is tuned.
        training: how.
        seed: of the order of the samples.
        bar: is moved by one in each step.

    Raises:
        ModelError: if losses are no longer finite.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    loader: DataLoader[int] = DataLoader(
        positions,  # type: ignore[arg-type]  # a sequence is a dataset
        training.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=list,
    )
    optimizer = _optimizer(trained, training)
    schedule = _schedule(optimizer, training, training.epochs * len(loader))
    model.train(training.dropout)
    for step, batch in enumerate(batch for _ in range(training.epochs) for batch in loader):
        optimizer.zero_grad()
        for part in losses.parts(model, batch):
            loss = part.sum() / len(batch)
            if not loss.isfinite():
                raise ModelError(
                    f"The model diverged when it was tuned again: a loss is {loss.item()} after "
                    f"{step:,} steps. Check 'training', its learning_rate of "
                    f"{training.learning_rate:g} above all."
                )
            loss.backward()  # type: ignore[no-untyped-call]
        if training.clip is not None:
            nn.utils.clip_grad_norm_(trained, training.clip)
        optimizer.step()
        schedule.step()
        bar.update()
    optimizer.zero_grad()
    model.eval()


def steps_of(training: Training, n: int) -> int:
    """Steps of the optimizer on n samples."""
    return training.epochs * -(-n // training.batch_size)


def compute_losses(model: nn.Module, losses: Losses) -> NDArray[np.float64]:
    """Computes the losses of all samples.

    Args:
        model: in evaluation mode.
        losses: of n samples.

    Returns:
        Losses (n,).
    """
    with torch.no_grad():
        parts = list(losses.parts(model, range(len(losses.lengths))))
    return torch.cat(parts).double().cpu().numpy()


def _optimizer(trained: Sequence[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    also = {"momentum": training.momentum} if training.optimizer == "sgd" else {}
    made: torch.optim.Optimizer = OPTIMIZERS[training.optimizer](
        trained, lr=training.learning_rate, weight_decay=training.weight_decay, **also
    )
    return made


def _schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> Any:
    constant = training.schedule == "constant"
    return imported("transformers").get_scheduler(
        "constant_with_warmup" if constant else training.schedule,
        optimizer,
        num_warmup_steps=int(np.ceil(training.warmup * steps)),
        num_training_steps=steps,
    )


def bar_of(training: Training, n: int, *, shown: bool) -> Any:
    """A bar of steps on stderr."""
    return tqdm(
        total=steps_of(training, n), desc="tuning", unit="step", leave=False, disable=not shown
    )
