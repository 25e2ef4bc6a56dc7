"""What an iterated inverse is set to, which takes no torch to read."""

from dataclasses import dataclass
from math import isfinite
from numbers import Real

from pydvl_datainf.errors import ModelError


@dataclass(frozen=True, slots=True)
class Iteration:
    """How long LiSSA goes on.

    Args:
        iterations: the most steps, of a pass each.
        tolerance: the residual ‖(H + λ I) x − v‖/‖v‖ at which a vector is solved.

    Raises:
        ModelError: if either is out of range.
    """

    iterations: int
    tolerance: float

    def __post_init__(self) -> None:
        if type(self.iterations) is not int or self.iterations < 1:
            raise ModelError(f"iterations must be a positive number, got {self.iterations!r}.")
        tolerance, is_real = self.tolerance, isinstance(self.tolerance, Real)
        if isinstance(tolerance, bool) or not (is_real and isfinite(tolerance) and tolerance > 0):
            raise ModelError(f"tolerance must be a positive number, got {tolerance!r}.")
