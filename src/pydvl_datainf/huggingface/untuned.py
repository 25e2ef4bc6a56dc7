"""What the tuning of a model began with: base weights and a new adapter, or base weights alone."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pydvl_datainf.errors import ModelError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.models import INIT, ModelFiles, loading
from pydvl_datainf.huggingface.selection import select_parameters

FROM_DATA = ("corda", "eva", "loftq", "lora_ga")
"""Initialisations of adapters that take more than their configuration."""


def load_untuned(
    files: ModelFiles, base: str | None, trained: Literal["all"] | Sequence[str] | None
) -> nn.Module:
    """Loads the model as it was before its tuning; what is new comes from torch's global generator.

    That is first a head that the base does not have, and then the adapter.

    Args:
        files: of the tuned model.
        base: folder or name of a base without an adapter, into which the tuned model's
            configuration is put; None where `files` name an adapter.
        trained: which parameters of such a base require gradients; those of an adapter follow
            from its configuration.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: if what the tuning began with cannot be made again.
    """
    if files.adapter is None:
        if Path(files.model, "adapter_config.json").exists():
            raise ModelError(
                f"{files.model} holds an adapter. To tune it again, name that folder as adapter, "
                "and as model what it was tuned on."
            )
        source = str(base)
        replace(files, model=source).check()
        model, _ = files.pretrained(source)
        if trained is not None and trained != "all":  # all: as the model's class has it
            select_parameters(model, trained)
    else:
        files.check()
        model, _ = files.pretrained(files.model)
        model = _with_new_adapter(model, files.adapter)
    untuned: nn.Module = model.eval()
    return untuned


def _with_new_adapter(model: nn.Module, adapter: str) -> Any:
    peft = imported("peft")
    with loading("the adapter", adapter, "adapter_config.json"), warnings.catch_warnings():
        # peft asks the model by a name that transformers 5 announces to drop.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        config = peft.PeftConfig.from_pretrained(adapter)
        made = str(getattr(config, INIT, True))
        if made in FROM_DATA:
            raise ModelError(
                f"The adapter {adapter} was made with {INIT}={made}, from more than its "
                "configuration holds, so its tuning cannot be repeated from there."
            )
        config.inference_mode = False  # as it is saved
        config.base_model_name_or_path = None  # which may be where it was tuned
        return peft.get_peft_model(model, config)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators of the CPU and of a device, and puts their states back at the end.

    Args:
        seed: of both.
        device: where there may be dropout.

    Yields:
        Nothing.
    """
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.default_generator.manual_seed(seed)  # the others' states would not be restored
        for card in cards:
            with torch.cuda.device(card):
                torch.cuda.manual_seed(seed)
        yield
