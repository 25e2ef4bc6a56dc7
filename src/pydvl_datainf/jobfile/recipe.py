"""Whether `training` is the recipe that made a job's model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydvl_datainf.errors import JobError

Array = NDArray[np.float64]

FACTOR = 3.0
"""How many times as far from the retrained models as these from each other a model may be."""
ROUNDING = 1e-3
"""The share of the mean loss up to which losses of two models count as the same."""


@dataclass(frozen=True, slots=True)
class RecipeCheck:
    """The job's model beside two that were tuned on all of its training data, of two seeds.

    Distances are means of absolute differences of test losses.

    Args:
        given: losses (m,) of the job's model.
        retrained: losses (2, m) of the two others.
    """

    given: Array
    retrained: Array

    @property
    def distance(self) -> float:
        """From the job's model to the retrained ones, the mean over both."""
        return float(np.abs(self.retrained - self.given).mean())

    @property
    def between_seeds(self) -> float:
        """From one retrained model to the other."""
        return float(np.abs(self.retrained[0] - self.retrained[1]).mean())

    def check(self) -> None:
        """Checks that chance, as between two seeds, may have made the difference.

        Raises:
            JobError: if the job's model is farther from the retrained ones than `FACTOR` times
                their distance, and than rounding.
        """
        allowed = max(FACTOR * self.between_seeds, ROUNDING * float(np.abs(self.given).mean()))
        if self.distance > allowed:
            raise JobError(
                "'training' is not the recipe that made the model. Tuned again on all training "
                f"data, its test losses differ by {self.distance:.3g} on average from those of the "
                f"given model, and by {self.between_seeds:.3g} between two seeds; up to "
                f"{allowed:.3g} could be chance. The mean test loss is {self.given.mean():.4g} "
                f"given, and {_both(self.retrained.mean(1))} retrained. Correct the fields of "
                "'training'; if they are right, try another seed there."
            )


def _both(values: Array) -> str:
    return " and ".join(f"{value:.4g}" for value in values)
