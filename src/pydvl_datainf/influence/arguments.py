"""What callers pass to pyDVL's methods."""

from collections.abc import Mapping
from typing import Any

from pydvl.influence.types import InfluenceMode, UnsupportedInfluenceModeException
from torch import Tensor

from pydvl_datainf.errors import BatchError
from pydvl_datainf.influence.settings import Inputs


def given_samples(x: Inputs, y: Tensor | None) -> Any:
    """Samples as a data loader would yield them.

    Args:
        x: inputs, or a mapping that carries its labels.
        y: targets; None with a mapping.

    Returns:
        The pair, or the mapping.

    Raises:
        BatchError: if labels are missing, or there are two.
    """
    if isinstance(x, Mapping):
        if y is not None:
            raise BatchError(
                "A mapping carries its own labels, so y must be None. Put the labels into the "
                "mapping, under the key that the objective reads."
            )
        return x
    if y is None:
        raise BatchError("Inputs x came without labels y. Pass both (a mapping carries its own).")
    return x, y


def checked_mode(mode: InfluenceMode | str) -> InfluenceMode:
    """The mode by its name; pyDVL's own error where there is none."""
    try:
        return InfluenceMode(mode)
    except ValueError:
        raise UnsupportedInfluenceModeException(mode) from None
