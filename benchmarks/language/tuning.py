"""Tuning on answers, with the adapters kept on disk under a hash of all that they depend on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from encoding import Batch, Tokens, length, to_batch, to_batches
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from pydvl_datainf import CausalLM

WARM_UP = 0.05  # of all steps; then the learning rate falls linearly to zero
GROUP = 8  # so many batches' samples are sorted by length before they are split


def tuned(
    model: nn.Module,
    encoded: Sequence[Tokens],
    settings: dict[str, Any],
    cache: Path,
) -> tuple[list[float], bool]:
    """Tunes the adapters in place, or reads them where the same was tuned before.

    Returns:
        The mean training loss of each epoch, and whether it was read.
    """
    content = json.dumps([settings, encoded], sort_keys=True).encode()
    file = cache / f"adapter-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    history = file.with_suffix(".json")
    cached = history.exists()
    if cached:
        set_peft_model_state_dict(model, load_file(file))
        losses = json.loads(history.read_text())["losses"]
    else:
        losses = tune(model, encoded, settings)
        cache.mkdir(parents=True, exist_ok=True)
        save_file(get_peft_model_state_dict(model), file)
        history.write_text(json.dumps({**settings, "losses": losses}, indent=1))
    model.eval()
    return losses, cached


def tune(model: nn.Module, encoded: Sequence[Tokens], settings: dict[str, Any]) -> list[float]:
    """AdamW on the mean of the samples' losses; returns its mean over each epoch."""
    epochs, size = settings["epochs"], settings["batch_size"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], weight_decay=0.0)
    steps = epochs * -(-len(encoded) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (WARM_UP * steps)) * (1 - step / steps)
    )
    order = torch.Generator().manual_seed(settings["seed"])
    losses = []
    model.train()
    with tqdm(total=steps, desc="Tuning", unit="batch") as bar:
        for _ in range(epochs):
            total = 0.0
            for batch in _shuffled(encoded, size, settings["device"], order):
                optimizer.zero_grad()
                each = CausalLM().losses(model, batch)
                each.mean().backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += each.sum().item()
                bar.update()
            losses.append(total / len(encoded))
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    optimizer.zero_grad()
    return losses


def _shuffled(
    encoded: Sequence[Tokens], size: int, device: str, order: torch.Generator
) -> Iterator[Batch]:
    """Random batches of samples of similar length, in random order."""
    permutation = torch.randperm(len(encoded), generator=order).tolist()
    batches = []
    for start in range(0, len(encoded), GROUP * size):
        group = sorted(permutation[start : start + GROUP * size], key=lambda i: length(encoded[i]))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    for i in torch.randperm(len(batches), generator=order).tolist():
        yield to_batch([encoded[j] for j in batches[i]], device)


@torch.no_grad()
def answer_losses(model: nn.Module, encoded: Sequence[Tokens], settings: dict[str, Any]) -> float:
    """The mean over samples of the mean loss of the answer's tokens, in nats."""
    batches = to_batches(encoded, settings["gradient_batch_size"], settings["device"])
    return float(torch.cat([CausalLM().losses(model, batch) for batch in batches]).mean())
