"""Per-sample gradients as rows, block by block: what computes them, chosen by name."""

from typing import Literal, TypeAlias

from torch import nn

from pydvl_datainf.blocks import Blocks
from pydvl_datainf.errors import ModelError, OptimizerError
from pydvl_datainf.gradients.capture import CaptureEngine
from pydvl_datainf.gradients.engines import GradientEngine, LossGradientEngine
from pydvl_datainf.gradients.functional import FunctionalEngine
from pydvl_datainf.gradients.padding import PaddingCheckEngine
from pydvl_datainf.gradients.preconditioned import AdamPreconditioner, PreconditionedEngine
from pydvl_datainf.objectives import Objective

Gradients: TypeAlias = Literal["auto", "capture", "functional"]


def gradient_engine(
    kind: Gradients,
    model: nn.Module,
    objective: Objective,
    blocks: Blocks,
    preconditioner: AdamPreconditioner | None = None,
) -> LossGradientEngine:
    """The engine that `kind` names.

    Args:
        kind: "auto" (capture, and one backward pass per sample for what capture cannot explain),
            "capture" (the same, but what it cannot explain is an error) or "functional"
            (`torch.func` over the whole model).
        model: whose gradients are taken.
        objective: gives one loss per sample.
        blocks: the parameters that are differentiated.
        preconditioner: of the coordinates that rows are in; None = those of the parameters.

    Returns:
        The engine, which warns where padding changes gradients.

    Raises:
        ModelError: if there is no such kind.
        OptimizerError: if the preconditioner is none, or not that of the model.
    """
    engine: LossGradientEngine
    if kind == "functional":
        engine = FunctionalEngine(model, objective, blocks)
    elif kind in ("auto", "capture"):
        engine = CaptureEngine(model, objective, blocks, strict=kind == "capture")
    else:
        raise ModelError(f'gradients must be "auto", "capture" or "functional", got {kind!r}.')
    engine = PaddingCheckEngine(engine, model)
    if preconditioner is None:
        return engine
    if not isinstance(preconditioner, AdamPreconditioner):
        raise OptimizerError(
            "preconditioner must be an AdamPreconditioner, such as "
            "AdamPreconditioner.from_optimizer(trainer.optimizer, trainer.model) after training; "
            f"got {preconditioner!r}."
        )
    return PreconditionedEngine(engine, preconditioner.rows(blocks))


__all__ = [
    "AdamPreconditioner",
    "CaptureEngine",
    "FunctionalEngine",
    "GradientEngine",
    "Gradients",
    "LossGradientEngine",
    "gradient_engine",
]
