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
FACTOR = 3.0
"""How many times as far from the retrained models as these from each other a model may be.

Were losses of models of one recipe normal with one degree of freedom, as their mean is, a right
recipe would be refused once in ninety times.
"""
ROUNDING = 1e-3
"""The share of the mean loss up to which losses of two models count as the same."""


@dataclass(frozen=True, slots=True)
class RecipeCheck:
    """The job's model beside some that were tuned on all of its training data, of as many seeds.

    A distance is the mean of absolute differences, over test samples and models, or over models
    and pairs of them for mean losses, which tell models apart whose single losses vary much.

    Args:
        given: losses (m,) of the job's model.
        retrained: losses (S, m) of the others, S at least 2.
    """

    given: Array
    retrained: Array

    @property
    def distance(self) -> float:
        """From the job's model to the retrained ones."""
        return _distance(self.given, self.retrained)

    @property
    def between_seeds(self) -> float:
        """From one retrained model to another."""
        return _between(self.retrained)

    @property
    def distance_of_means(self) -> float:
        """From the mean loss of the job's model to those of the retrained ones."""
        return _distance(self.given.mean(keepdims=True), self.retrained.mean(1, keepdims=True))

    @property
    def means_between_seeds(self) -> float:
        """From the mean loss of one retrained model to that of another."""
        return _between(self.retrained.mean(1, keepdims=True))

    @property
    def fits(self) -> bool:
        """Whether the job's model may be one of them: both distances are `FACTOR` times at most."""
        rounding = ROUNDING * float(np.abs(self.given).mean())
        pairs = (
            (self.distance, self.between_seeds),
            (self.distance_of_means, self.means_between_seeds),
        )
        return all(away <= max(FACTOR * apart, rounding) for away, apart in pairs)


def _distance(given: Array, retrained: Array) -> float:
    return float(np.abs(retrained - given).mean())


def _between(retrained: Array) -> float:
    return float(np.mean([np.abs(a - b).mean() for a, b in combinations(retrained, 2)]))


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
    raise JobError(
        f"'training' is not the recipe that made the model. Tuned again on all training data with "
        f"{SEEDS[-1]} seeds, its test losses differ by {found.distance:.3g} on average from those "
        f"of the given model, and by {found.between_seeds:.3g} between two seeds; the mean loss is "
        f"{given.mean():.4g} given, and {found.retrained.mean():.4g} retrained, with differences "
        f"of {found.means_between_seeds:.3g} between two seeds. More than {FACTOR:g} times the "
        "difference between seeds is no chance. Correct the fields of 'training'."
    )
