"""Weighted sums of influences: which weights they may have, and what they are called."""

from collections.abc import Iterable, Sequence
from math import isfinite

from pydvl_datainf.errors import PlanError


def checked_weights(weights: Sequence[float] | None, count: int, what: str) -> list[float]:
    """The weights of a sum.

    Args:
        weights: one for each, not negative; None = 1 for each.
        count: how many are added.
        what: is added, in the plural.

    Returns:
        Weights, as many as are added.

    Raises:
        PlanError: if nothing is added, or the weights do not fit.
    """
    if not count:
        raise PlanError(f"There are no {what} to add. Pass one or more.")
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count:
        raise PlanError(f"There are {len(given)} weights for {count} {what}; pass one for each.")
    if not all(isfinite(w) and w >= 0 for w in given) or not any(given):
        raise PlanError(
            f"Weights must be finite, not negative, and not all zero; got {given}. To compare two "
            f"{what}, subtract their influences."
        )
    return given


def sum_name(methods: Iterable[str]) -> str:
    """What stands for the method of a sum: those of its parts, each once."""
    return f"sum of {', '.join(dict.fromkeys(methods))}"
