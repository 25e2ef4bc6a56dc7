"""A tuned model on disk as an influence model, built in whichever process needs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pydvl_datainf.huggingface.models import ModelFiles, Task
from pydvl_datainf.huggingface.selection import Parameters, select_parameters
from pydvl_datainf.influence import Damping, DataInfInfluence
from pydvl_datainf.objectives import (
    CausalLM,
    Objective,
    SequenceClassification,
    TokenClassification,
)
from pydvl_datainf.objectives.tokens import Reduction


@dataclass(frozen=True, slots=True)
class InfluenceBuilder:
    """Loads a tuned model and makes a `DataInfInfluence` of it; takes the model's place in a run.

    Args:
        files: where the model is.
        parameters: which take part.
        device: "cpu", "cuda", or "auto" (CUDA where there is a device).
        reduction: of the losses of a sample's tokens.
        regularization: λ, or "auto".
        block_structure: "module" or the value of a pyDVL `BlockMode`.
        max_tokens: tokens in one gradient computation.
    """

    files: ModelFiles
    parameters: Parameters = "adapters"
    device: Literal["cpu", "cuda", "auto"] | str = "auto"
    reduction: Reduction = "mean"
    regularization: Damping = "auto"
    block_structure: str = "module"
    max_tokens: int | None = None

    def __call__(self) -> DataInfInfluence:
        """Builds the influence model, not fitted."""
        model = self.files.load()
        select_parameters(model, self.parameters)
        if not getattr(model, "is_quantized", False):  # those are where they can be
            model.to(self._device)
        return DataInfInfluence(
            model,
            objective_of(self.files.task, self.reduction),
            self.regularization,
            self.block_structure,
            max_tokens=self.max_tokens,
        )

    @property
    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def objective_of(task: Task, reduction: Reduction = "mean") -> Objective:
    """The objective of a task.

    Args:
        task: what the model does.
        reduction: of the losses of a sample's tokens.

    Returns:
        The objective.
    """
    objectives: Mapping[Task, Any] = {
        "causal-lm": lambda: CausalLM(reduction),
        "sequence-classification": SequenceClassification,
        "token-classification": lambda: TokenClassification(reduction),
    }
    objective: Objective = objectives[task]()
    return objective
