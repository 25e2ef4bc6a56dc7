"""How far the numbers of a run may be trusted, in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydvl_datainf.inverse.approximation_error import ApproximationError
from pydvl_datainf.inverse.names import DATAINF, EXACT, HESSIAN_FREE


@dataclass(frozen=True, slots=True)
class Trust:
    """What is said of the distance from the exact inverse.

    Attributes:
        measure: what was measured.
        value: its value, or why there is none.
        says: what is known.
        silent: what is not known by that.
    """

    measure: str
    value: str
    says: tuple[str, ...]
    silent: tuple[str, ...]


MEASURE = "agreement with the exact inverse"

SILENT = (
    "Whether training again without a sample would change a loss as its influence says: influence "
    "is a first-order estimate around one tuned model.",
    "What is lost by treating each block by itself, and by the damping: the exact inverse that is "
    "meant here does the same.",
    "Whether a sample is wrong. Influence ranks candidates for a second look; it is no proof. Set "
    "a plain score, such as the training loss, beside it.",
)


DIVIDED = (
    "The influences of this run are divided by the norms of training gradients. Those that were "
    "compared are not: in their order long gradients count more."
)


def trust_of(
    method: str,
    error: ApproximationError | None,
    is_query: bool = False,
    is_divided: bool = False,
) -> Trust:
    """Puts the distance from the exact inverse into words.

    Args:
        method: name of the inverse.
        error: as the run measured it.
        is_query: whether the run uses the rows of another one; it then measures nothing.
        is_divided: whether influences are divided by norms of gradients, which are then not those
            that were compared.

    Returns:
        What is said of it.
    """
    if error is not None:
        rank = error.rank_correlation
        if rank is None:
            measure, value = "difference from the exact inverse", f"{error.score_error:.2g}"
        else:
            measure, value = "rank correlation with the exact inverse", f"{rank:.2f}"
        told = (*_measured(method, error), *([DIVIDED] if is_divided else []))
        return Trust(measure, value, told, SILENT)
    if method == EXACT:
        says = "Each block has its exact damped inverse: nothing is approximated in it."
        return Trust(MEASURE, "exact", (says,), SILENT)
    if method == HESSIAN_FREE:
        says = (
            "These are products of gradients. They take no inverse, so that none is approximated."
        )
        return Trust(MEASURE, "no inverse", (says,), SILENT)
    if is_query:
        says = (
            "A query is not compared; have the run whose rows it uses compared (exact_sample=256)."
        )
        return Trust(MEASURE, "not measured", (says,), SILENT)
    how = (
        "This run did not compare its inverse with the exact one.",
        "To have it compared, call run_influences again with the same arguments and "
        "exact_sample=256, or run the job again with exact_sample: 256. What there is of the run "
        "is not computed again.",
    )
    return Trust(MEASURE, "not measured", how, SILENT)


def trust_of_sum() -> Trust:
    """What is said of a sum of runs."""
    says = (
        "This is a sum of runs, each of which has an inverse of its own. How far each is from the "
        "exact inverse is told by its own report."
    )
    return Trust(MEASURE, "that of its parts", (says,), SILENT)


def _measured(method: str, error: ApproximationError) -> Iterator[str]:
    if error.rank_correlation is not None:
        yield (
            "Order: the influences on a test sample rank training samples as the exact inverse "
            f"does with a correlation of {error.rank_correlation:.2f} (Spearman's; 1 = the same "
            "order, 0 = none in common)."
        )
    low, high = error.cosines.min(), error.cosines.max()
    yield (
        f"Direction: in single blocks the cosine to what the exact inverse gives is {low:.2f} to "
        f"{high:.2f} (1 = only the size differs)."
    )
    yield (
        f"Size: the influences differ from the exact ones by {times(error.score_error)} their size "
        "(relative Frobenius norm). A factor common to all of them counts here, but changes no "
        "order."
    )
    yield (
        f"Measured over {error.n:,} training and {error.m:,} test samples of this run, with the "
        "same λ." + _dependence(method)
    )
    yield 'What to make of these numbers: docs/trust.md, "How far to trust a score".'


def _dependence(method: str) -> str:
    if method != DATAINF:
        return " The numbers belong to this many samples."
    return (
        " The numbers belong to this many samples: DataInf is exact for one, and departs from the "
        "exact inverse as they become more."
    )


def times(ratio: float) -> str:
    """A ratio in words, with two digits that count.

    Args:
        ratio: not negative.

    Returns:
        "… of" or "… times", to be followed by what it is a ratio to.

    Example:
        >>> times(0.1234), times(418.3), times(0.0), times(3e-7)
        ('12% of', '418 times', '0% of', '3.0e-05% of')
    """
    share = 100 * ratio
    if ratio >= 2:
        return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:,.0f} times"
    if share == 0 or share >= 10:
        return f"{share:.0f}% of"
    return f"{share:.2g}% of" if share >= 0.01 else f"{share:.1e}% of"
