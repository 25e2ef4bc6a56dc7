"""A tuned model on disk as an influence model, built in whichever process needs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from pydvl_datainf.huggingface.optimizer import read_adam
from pydvl_datainf.huggingface.placement import device_called
from pydvl_datainf.huggingface.selection import Parameters, select_parameters
from pydvl_datainf.influence import METHODS, BlockwiseInfluence, Damping, Method, check_method
from pydvl_datainf.objectives import Objective


class Files(Protocol):
    """Where a tuned model is."""

    def load(self) -> nn.Module:
        """Loads it, in evaluation mode."""
        ...


@dataclass(frozen=True, slots=True)
class InfluenceBuilder:
    """Loads a tuned model and makes an influence model of it; takes its place in a run.

    Args:
        files: where the model is.
        objective: gives one loss for each sample.
        parameters: which take part.
        device: "cpu", "cuda", "auto" (CUDA where there is a device), or "spread" (where the files
            were loaded).
        regularization: λ, or "auto".
        block_structure: "module" or the value of a pyDVL `BlockMode`.
        batch_size: samples in one gradient computation.
        max_tokens: tokens in one gradient computation.
        method: what takes the place of each block's inverse.
        damping_scale: what λ that are chosen automatically are multiplied by.
        settings: further arguments of the method's class, such as `iterations` of LiSSA.
        test_objective: what is asked of test samples in place of their loss.
        checkpoint: folder of a Trainer, whose Adam is the preconditioner; None = there is none.
    """

    files: Files
    objective: Objective
    parameters: Parameters = "adapters"
    device: str = "auto"
    regularization: Damping = "auto"
    block_structure: str = "module"
    batch_size: int | None = None
    max_tokens: int | None = None
    method: Method = "datainf"
    damping_scale: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    test_objective: Objective | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        check_method(self.method)

    def __call__(self) -> BlockwiseInfluence:
        """Builds the influence model, not fitted."""
        model = self.files.load()
        # Before parameters are chosen: those that were trained require gradients.
        adam = None if self.checkpoint is None else read_adam(self.checkpoint, model)
        select_parameters(model, self.parameters)
        move_model(model, device_called(self.device))
        return METHODS[self.method](
            model,
            self.objective,
            self.regularization,
            self.block_structure,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            damping_scale=self.damping_scale,
            **self.settings,
            test_objective=self.test_objective,
            preconditioner=adam,
        )


def move_model(model: nn.Module, device: torch.device) -> None:
    """Moves a model in place; one that was loaded onto its devices, as quantised ones are, stays.

    Args:
        model: any.
        device: where to.
    """
    is_placed = bool(getattr(model, "hf_device_map", None))
    if not is_placed and not getattr(model, "is_quantized", False):
        model.to(device)
