"""What a run tells of each training sample as a whole, by the names that commands have for it."""

from collections.abc import Mapping
from typing import NamedTuple

from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.reader import InfluenceRun


class Measure(NamedTuple):
    """A number for each training sample.

    Attributes:
        name: for people.
        method: of `InfluenceRun`.
        is_suspicion: whether a larger number is more suspicious; of an influence, a smaller one is.
    """

    name: str
    method: str
    is_suspicion: bool = False

    def read(self, run: InfluenceRun) -> Array:
        """The numbers of a complete run, (n,), in the order of the training data."""
        values: Array = getattr(run, self.method)()
        return values

    def is_largest(self, end: str) -> bool:
        """Whether the largest numbers are at the "helpful" or the "harmful" end."""
        return self.is_suspicion == (end == "harmful")


MEASURES: Mapping[str, Measure] = {
    "mean": Measure("mean influence", "mean_influence"),
    "median": Measure("median influence", "median_influence"),
    "relative": Measure("relative influence", "relative_influence"),
    "self": Measure("self-influence", "self_influence", is_suspicion=True),
    "loss": Measure("training loss", "training_loss", is_suspicion=True),
    "suspicion": Measure("suspicion", "suspicion", is_suspicion=True),
}
