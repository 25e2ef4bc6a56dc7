"""Whether `training` is the recipe that made a job's model."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pydvl_datainf.errors import JobError

Array = NDArray[np.float64]

SEEDS = (2, 4, 6)
"""Models that are tuned again: more only where fewer look different from the given one."""
FACTOR = 2.5
"""How many times as far from the retrained models as these from each other a model may be.

Were losses of models of one recipe normal with one degree of freedom, the worst case, a right
recipe would be refused once in forty times; with two degrees, once in three hundred.
"""
ROUNDING = 1e-3
"""The share of the mean loss up to which losses of two models count as the same."""


@dataclass(frozen=True, slots=True)
class RecipeCheck:
    """The job's model beside some that were tuned on all of its training data, of as many seeds.

    Distances are means of absolute differences of test losses.

    Args:
        given: losses (m,) of the job's model.
        retrained: losses (S, m) of the others, S at least 2.
    """

    given: Array
    retrained: Array

    @property
    def distance(self) -> float:
        """From the job's model to the retrained ones, the mean over these."""
        return float(np.abs(self.retrained - self.given).mean())

    @property
    def between_seeds(self) -> float:
        """From one retrained model to another, the mean over pairs."""
        return float(np.mean([np.abs(a - b).mean() for a, b in combinations(self.retrained, 2)]))

    @property
    def allowed(self) -> float:
        """The distance that chance or rounding may make."""
        return max(FACTOR * self.between_seeds, ROUNDING * float(np.abs(self.given).mean()))

    @property
    def fits(self) -> bool:
        """Whether the job's model may be one of them."""
        return self.distance <= self.allowed


def check_recipe(given: Array, retrained: Callable[[int], Array]) -> RecipeCheck:
    """Checks that the job's model may have been made by the recipe, as others that were.

    Args:
        given: test losses (m,) of the job's model.
        retrained: gives those of as many models as it is asked for, (S, m), of seeds 0, 1, ...,
            tuned on all training data.

    Returns:
        The comparison with as few of them as were needed.

    Raises:
        JobError: if it is farther from all of them than they from each other.
    """
    for seeds in SEEDS:
        found = RecipeCheck(given, retrained(seeds))
        if found.fits:
            return found
    means = found.retrained.mean(1)
    raise JobError(
        f"'training' is not the recipe that made the model. Tuned again on all training data with "
        f"{len(means)} seeds, its test losses differ by {found.distance:.3g} on average from those "
        f"of the given model, and by {found.between_seeds:.3g} between two seeds; up to "
        f"{found.allowed:.3g} could be chance. The mean test loss is {given.mean():.4g} given, and "
        f"from {means.min():.4g} to {means.max():.4g} retrained. Correct the fields of 'training'."
    )
