"""What callers may give an influence model: settings, and the mode of influences."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from pydvl.influence.types import InfluenceMode, UnsupportedInfluenceModeException
from torch import Tensor

from pydvl_datainf.errors import BatchError, ModelError, SourceError
from pydvl_datainf.objectives import Objective

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
Loss: TypeAlias = Objective | Callable[[Any, Tensor], Tensor]
Curvature: TypeAlias = Literal["empirical", "gauss-newton"]
Damping: TypeAlias = float | Mapping[str, float] | Literal["auto"]


def check_settings(batch_size: int | None, rows: str, curvature: str) -> None:
    """Checks the settings that stand for themselves.

    Args:
        batch_size: the largest number of samples in one gradient computation; None = as given.
        rows: what happens to the training gradients after `fit`.
        curvature: which rows the inverse is made of.

    Raises:
        BatchError: if batch_size is not a positive integer.
        SourceError: if there is no such choice of rows, or rows are to be compressed with the
            curvature of others.
        ModelError: if there is no such curvature.
    """
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise BatchError(f"batch_size must be a positive number or None, got {batch_size!r}.")
    if rows not in ("memory", "recompute", "compressed", "auto"):
        raise SourceError(
            f'rows must be "memory", "recompute", "compressed" or "auto", got {rows!r}.'
        )
    if curvature not in ("empirical", "gauss-newton"):
        raise ModelError(f'curvature must be "empirical" or "gauss-newton", got {curvature!r}.')
    if curvature != "empirical" and rows == "compressed":
        raise SourceError(
            "The bases of compressed rows are learned from the gradients, and this curvature "
            'takes other rows. Use rows="memory", or curvature="empirical".'
        )


def checked_mode(mode: InfluenceMode | str) -> InfluenceMode:
    """The mode by its name; pyDVL's own error where there is none."""
    try:
        return InfluenceMode(mode)
    except ValueError:
        raise UnsupportedInfluenceModeException(mode) from None
