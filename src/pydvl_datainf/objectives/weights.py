"""Torch's losses whose mean over weighted samples cancels the weight of a sample by itself."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
DIVIDING = tuple(getattr(F, name) for name in NAMES if hasattr(F, name))
"""Those whose mean is (Σ_i w_i l_i) / (Σ_i w_i); that of others is (1/n) Σ_i w_i l_i."""


class WeightsKept(TorchFunctionMode):
    """While it is entered, a mean that divides by weights raises an `ObjectiveError`.

    It sees the calls of torch's functions, whatever module or function makes them.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch, unless its mean would cancel weights."""
        if func in DIVIDING:
            _check_no_division(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _check_no_division(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    bound = inspect.signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    told = bound.arguments
    # Targets that are probabilities are weighted class by class, and their mean divides by n.
    soft = "label_smoothing" in told and told["target"].is_floating_point()
    mean = told["reduction"] == "mean" and False not in (
        told.get("size_average"),
        told.get("reduce"),
    )
    if told.get("weight") is not None and mean and not soft:
        raise ObjectiveError(
            f"The mean of {func.__name__} divides by the weights of the samples that it sees. Each "
            'sample is shown to it by itself, so its weight would cancel. Pass reduction="sum", '
            "which counts weight times loss, or an objective: a class with losses(model, batch)."
        )
