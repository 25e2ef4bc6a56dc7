"""Torch's losses whose mean over weighted samples cancels the weight of a sample by itself."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pydvl_datainf.errors import ObjectiveError

NAMES = (
    "cross_entropy",
    "linear_cross_entropy",
    "nll_loss",
    "l1_loss",
    "mse_loss",
    "huber_loss",
)
DIVIDING = {f: inspect.signature(f) for f in (getattr(F, n, None) for n in NAMES) if f is not None}
"""Those whose mean is (Σ_i w_i l_i) / (Σ_i w_i); that of others is (1/n) Σ_i w_i l_i."""


def check_weights_kept(loss: Callable[[Any, Tensor], Any], output: Any, target: Tensor) -> None:
    """Calls a loss for one sample, to see whether it takes a mean that divides by weights.

    Args:
        loss: a pyDVL-style `loss(outputs, y)`; its value is not used.
        output: of one sample, (1, ...).
        target: of that sample, (1, ...).

    Raises:
        ObjectiveError: if it does, whatever module or function calls torch's.
    """
    watched = _Watched()
    with torch.no_grad():
        with watched:
            seen = loss(output, target)
        # Where it is watched, torch's l1_loss drops its weight: then its value tells of one.
        if watched.means_of_l1 and _differ(seen, loss(output, target)):
            raise ObjectiveError(_DIVIDES.format("l1_loss"))


def _differ(a: Tensor, b: Tensor) -> bool:
    try:
        return not torch.equal(a, b)
    except RuntimeError:  # within torch.vmap, outside of which the batch is looked at, too
        return False


class _Watched(TorchFunctionMode):
    """While it is entered, a mean that divides by weights raises an `ObjectiveError`."""

    means_of_l1 = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch, unless its mean would cancel weights."""
        if func in DIVIDING:
            bound = DIVIDING[func].bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            told = bound.arguments
            flags = (told.get("size_average"), told.get("reduce"))
            if told["reduction"] == "mean" and False not in flags:
                self.means_of_l1 += func is F.l1_loss
                # Targets that are probabilities are weighted class by class, and their mean divides
                # by n.
                soft = "label_smoothing" in told and told["target"].is_floating_point()
                if told.get("weight") is not None and not soft:
                    raise ObjectiveError(_DIVIDES.format(func.__name__))
        return func(*args, **(kwargs or {}))


_DIVIDES = (
    "The mean of {} divides by the weights of the samples that it sees. Each sample is shown to it "
    'by itself, so its weight would cancel. Pass reduction="sum", which counts weight times loss, '
    "or an objective: a class with losses(model, batch)."
)
