"""Tuning on preferences, with the adapters kept on disk under a hash of all that they depend on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from batches import Batch, EncodedPairs
from borrowed import tuning
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf.objectives.preference import SIDES, Preference, log_probabilities

Record = dict[str, Any]


def tuned(
    model: nn.Module,
    train: EncodedPairs,
    test: EncodedPairs,
    settings: dict[str, Any],
    cache: Path,
) -> Record:
    """Tunes the adapters in place, or reads them where the same was tuned before.

    Returns:
        The mean losses by epoch, in "tuning" and of the "test" pairs, and the "seconds".
    """
    content = json.dumps([settings, train.sides, test.sides], sort_keys=True).encode()
    file = cache / f"preference-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    known = file.with_suffix(".json")
    if known.exists():
        set_peft_model_state_dict(model, load_file(file))
        record = json.loads(known.read_text())["record"]
    else:
        start = perf_counter()
        record = tune(model, train, test, settings)
        record["seconds"] = round(perf_counter() - start, 1)
        cache.mkdir(parents=True, exist_ok=True)
        save_file(get_peft_model_state_dict(model), file)
        known.write_text(json.dumps({**settings, "record": record}, indent=1))
    model.eval()
    return record


def tune(
    model: nn.Module, train: EncodedPairs, test: EncodedPairs, settings: dict[str, Any]
) -> Record:
    """AdamW on the mean of the pairs' losses."""
    objective, parameters = Preference(settings["beta"]), trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], weight_decay=0.0)
    steps = settings["epochs"] * -(-len(train) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (tuning.WARM_UP * steps)) * (1 - step / steps)
    )
    order = torch.Generator().manual_seed(settings["seed"])
    record: Record = {"tuning": [], "test": []}
    with tqdm(total=steps, desc="Preference tuning", unit="batch") as bar:
        for _ in range(settings["epochs"]):
            model.train()
            total = 0.0
            for batch in shuffled(train, settings["batch_size"], settings["device"], order):
                optimizer.zero_grad()
                each = objective.losses(model, batch)
                each.mean().backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                total += each.sum().item()
                bar.update()
            record["tuning"].append(total / len(train))
            record["test"].append(float(losses(model.eval(), test, settings).mean()))
            print(
                {name: [round(x, 4) for x in values] for name, values in record.items()}, flush=True
            )
    optimizer.zero_grad()
    return record


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def shuffled(
    pairs: EncodedPairs, size: int, device: str, order: torch.Generator
) -> Iterator[Batch]:
    """Random batches of pairs of similar length, in random order."""
    permutation, groups = torch.randperm(len(pairs), generator=order).tolist(), []
    for start in range(0, len(pairs), tuning.GROUP * size):
        group = sorted(permutation[start : start + tuning.GROUP * size], key=pairs.length)
        groups += [group[i : i + size] for i in range(0, len(group), size)]
    for i in torch.randperm(len(groups), generator=order).tolist():
        yield pairs.to_batch(groups[i], device)


@torch.no_grad()
def losses(model: nn.Module, pairs: EncodedPairs, settings: dict[str, Any]) -> Tensor:
    """The loss of each pair in nats, (n,)."""
    batches = pairs.to_batches(settings["gradient_batch_size"], settings["device"])
    objective = Preference(settings["beta"])
    return torch.cat([objective.losses(model, batch) for batch in batches]).cpu()


@torch.no_grad()
def gaps(model: nn.Module, pairs: EncodedPairs, settings: dict[str, Any]) -> Tensor:
    """By how much the chosen answer's log-probability is above that of the rejected one, (n,)."""
    batches = pairs.to_batches(settings["gradient_batch_size"], settings["device"])
    chosen, rejected = (
        torch.cat([log_probabilities(model, batch, side) for batch in batches]) for side in SIDES
    )
    return (chosen - rejected).cpu()
