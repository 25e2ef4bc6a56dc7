"""What the comparisons have in common: a model with LoRA, and the versions of packages."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

RANK, SPREAD = 4, 0.1


def adapted(kind: Any, config: Any, targets: list[str]) -> Any:
    """With LoRA whose B is drawn at random: at its start, zero, A would have no gradient."""
    from peft import LoraConfig, get_peft_model  # which not every job takes

    torch.manual_seed(0)
    model = get_peft_model(kind(config), LoraConfig(r=RANK, target_modules=targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=SPREAD)
    return model


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
