"""Numbers of each training sample: what `top --by` orders by, and columns of the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.reader import InfluenceRun

Kind: TypeAlias = Literal["influence", "scientific", "number"]
Kept: TypeAlias = Literal["scores", "self_influence", "training_loss"]

_IS_KEPT: Mapping[Kept, Callable[[InfluenceRun], bool]] = {
    "scores": lambda run: run.scores is not None,
    "self_influence": lambda run: run.has_self_influence,
    "training_loss": lambda run: run.has_training_loss,
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A number for each training sample.

    Attributes:
        name: for people; in records with underscores.
        read: the numbers of a complete run, (n,), in the order of the training data.
        foremost: the samples that the report calls suspicious by it, in words; "{queries}" stands
            for what the run's queries are called.
        takes: what a run must have kept beside mean influences.
        kind: how the report shows it: with a sign and a bar or without, or as any other number.
        definition: what it is, where its name does not say.
        is_suspicion: whether a larger number is more suspicious; of an influence, a smaller one is.
        beside_influences: whether the report shows it with what helped and hurt a test sample too.
    """

    name: str
    read: Callable[[InfluenceRun], Array]
    foremost: str
    takes: tuple[Kept, ...] = ()
    kind: Kind = "influence"
    definition: str = ""
    is_suspicion: bool = False
    beside_influences: bool = False

    def is_there(self, run: InfluenceRun) -> bool:
        """Whether a run kept what this takes."""
        return all(_IS_KEPT[kept](run) for kept in self.takes)

    def is_largest(self, end: str) -> bool:
        """Whether the largest numbers are at the "helpful" or the "harmful" end."""
        return self.is_suspicion == (end == "harmful")


_RELATIVE = "mean influence / √self-influence"
_SUSPICION = (
    "the average of the ranks of training loss and relative influence, from 1 to the number of "
    "training samples, the most suspicious"
)

MEASURES: Mapping[str, Measure] = {
    "mean": Measure(
        "mean influence",
        lambda run: run.mean_influence(),
        "the most harmful mean influence on all {queries}",
    ),
    "median": Measure(
        "median influence",
        lambda run: run.median_influence(),
        "the most harmful median influence",
        takes=("scores",),
    ),
    "relative": Measure(
        "relative influence",
        lambda run: run.relative_influence(),
        "the most harmful influence relative to what a sample can do at most "
        f"(relative influence = {_RELATIVE})",
        takes=("self_influence",),
        definition=_RELATIVE,
    ),
    "self": Measure(
        "self-influence",
        lambda run: run.self_influence(),
        "the largest influence on themselves",
        takes=("self_influence",),
        kind="scientific",
        is_suspicion=True,
    ),
    "loss": Measure(
        "training loss",
        lambda run: run.training_loss(),
        "the largest training loss",
        takes=("training_loss",),
        kind="number",
        is_suspicion=True,
        beside_influences=True,
    ),
    "suspicion": Measure(
        "suspicion",
        lambda run: run.suspicion(),
        f"the largest suspicion, which is {_SUSPICION}",
        takes=("self_influence", "training_loss"),
        kind="number",
        definition=_SUSPICION,
        is_suspicion=True,
        beside_influences=True,
    ),
}
"""By the names that commands have for them, in the order in which the report shows them."""
