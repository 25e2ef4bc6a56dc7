"""What retraining said of the scores of a run, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from pydvl_datainf.errors import DataInfError
from pydvl_datainf.results.beside import bank_beside, other_fields
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.yardstick.bank import Bank
from pydvl_datainf.yardstick.statistics import Validation
from pydvl_datainf.yardstick.subsets import Scores
from pydvl_datainf.yardstick.table import size_of_changes

UNUSABLE = (
    "There are retrainings beside this run, but they are too few yet, damaged, or of other data. "
    "Call validate of pydvl_datainf.yardstick again: it makes what is missing, or says what is "
    "wrong."
)

OF_ANOTHER_JOB = (
    "There are retrainings beside this run, but they are of another job: {fields} differ. Delete "
    "them, or keep those of this run elsewhere (--bank)."
)

RIGHT_SIZE = (
    "So the tables also show influences as about what leaving out one training sample adds to the "
    "loss of a test sample."
)
ORDER_ONLY = (
    "So read influences for their order, and their bars as shares of the largest: their size is "
    "not that of a change of loss."
)


@dataclass(frozen=True, slots=True)
class Retraining:
    """What is said of retraining.

    Attributes:
        value: the linear datamodelling score, or why there is none.
        says: sentences.
        unit: what an influence is multiplied by to be the change of a test sample's loss that
            leaving out the training sample makes; None where sizes say nothing of that.
    """

    value: str
    says: tuple[str, ...]
    unit: float | None = None


def retraining_of(run: InfluenceRun) -> Retraining | None:
    """Puts into words how well a run predicts the retrainings that are kept beside it.

    Args:
        run: complete.

    Returns:
        What is said of it; None where there are no retrainings.
    """
    place = bank_beside(run) if run.store.path is not None else None
    if place is None or not Path(place).is_dir():
        return None
    from pydvl_datainf.yardstick.validation import compare  # imports what trains, too

    try:
        other = other_fields(run, Bank.open(place).fingerprint["recipe"])
        if other:
            return Retraining("not known", (OF_ANOTHER_JOB.format(fields=", ".join(other)),))
        found = compare({"run": run}, place).validations["run"]
    except DataInfError:  # names places, which are nobody's business elsewhere
        return Retraining("not known", (UNUSABLE,))
    value, says = _with_error(found.lds, found.error), tuple(_sentences(found))
    unit = 1 / (run.plan.n * Scores.of(run).checkpoints) if found.has_right_size else None
    return Retraining(value, says, unit)


def _sentences(found: Validation) -> Iterator[str]:
    m, M = found.actual.shape
    yield (
        f"Models were trained again on {M:,} random halves of the training data, {found.seeds:,} "
        f"times on each. For each of {m:,} test samples, the order of its losses was compared with "
        "the order that the scores predict (linear datamodelling score: 1 = the same, 0 = none in "
        "common; ± is a standard error)."
    )
    if not isnan(found.ceiling):
        yield f"A perfect prediction would reach {found.ceiling:.2f}: retraining is noisy."
    if not isnan(found.slope):
        yield (
            f"Size: a loss changes by {size_of_changes(found)} times what is predicted (median "
            "over test samples; a sum of runs is divided by the sum of its weights). "
            + (RIGHT_SIZE if found.has_right_size else ORDER_ONLY)
        )
    if found.constant_losses:
        yield f"Left out, since no retraining changed their loss: {found.constant_losses:,}."


def _with_error(value: float, error: float) -> str:
    return "undefined" if isnan(value) else f"{value:.2f} ± {error:.2f}"
