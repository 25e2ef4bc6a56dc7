"""The result as tables for the terminal."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from pydvl_datainf.demo.result import DemoResult
from pydvl_datainf.demo.reviews import LABELS, Reviews
from pydvl_datainf.demo.scoring import MEAN_INFLUENCE
from pydvl_datainf.evaluation import Floats, largest
from pydvl_datainf.tables import titled_table
from pydvl_datainf.terminal import visible

SUSPECTS = 10
QUERIES = 3
NEIGHBOURS = 3


def tables(result: DemoResult) -> Iterator[Table]:
    """Everything that is shown at the end.

    Args:
        result: what was found.

    Yields:
        Tables, in the order in which to show them.
    """
    yield run_table(result)
    yield seconds_table(result)
    yield auc_table(result)
    yield suspects_table(result)
    for query in range(min(QUERIES, len(result.test))):
        yield neighbours_table(result, query)


def run_table(result: DemoResult) -> Table:
    """The data, the model and the dampings.

    Args:
        result: what was found.

    Returns:
        A table of names and values.
    """
    flipped, n, m = result.train.flipped.sum(), len(result.train), len(result.test)
    dampings = result.damping.values()
    larger_class = np.bincount(result.test.labels).max() / m
    table = titled_table("The run", header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("Training reviews", f"{n:,}")
    table.add_row("  with flipped label", f"{flipped:,} ({flipped / n:.1%})")
    table.add_row("Test reviews, clean", f"{m:,}")
    table.add_row("Accuracy on them", f"{result.accuracy:.1%}")
    table.add_row("  of naming the larger class always", f"{larger_class:.1%}")
    table.add_row("Blocks (LoRA matrices)", f"{len(result.damping):,}")
    table.add_row("Parameters in them", f"{result.n_parameters:,}")
    table.add_row("Damping λ, smallest to largest", f"{min(dampings):.2e} to {max(dampings):.2e}")
    return table


def seconds_table(result: DemoResult) -> Table:
    """How long each stage took.

    Args:
        result: what was found.

    Returns:
        A table with one row for each stage, and the sum.
    """
    table = titled_table("Time")
    table.add_column("Stage")
    table.add_column("Seconds", justify="right")
    for stage, seconds in result.seconds.items():
        table.add_row(stage, f"{seconds:.1f}")
    table.add_section()
    table.add_row("Together", f"{sum(result.seconds.values()):.1f}")
    return table


def auc_table(result: DemoResult) -> Table:
    """How well each score finds the flipped labels.

    Args:
        result: what was found.

    Returns:
        A table with one row for each score.
    """
    table = titled_table(
        "Finding flipped labels",
        caption="AUC: the chance that a flipped label looks more suspicious than\n"
        "a clean one. The training loss is the baseline without influences.",
    )
    table.add_column("Score")
    table.add_column("AUC", justify="right")
    for name, auc in result.aucs().items():
        table.add_row(name, f"{auc:.3f}")
    return table


def suspects_table(result: DemoResult) -> Table:
    """The training reviews that the mean influence holds for the most harmful.

    Args:
        result: what was found.

    Returns:
        A table with one row for each review.
    """
    suspicion = result.scores.suspicions()[MEAN_INFLUENCE]
    suspects = largest(suspicion, SUSPECTS)
    found = result.train.flipped[suspects].sum()
    table = titled_table(
        f"The {len(suspects)} most suspicious training reviews by {MEAN_INFLUENCE}",
        caption=f"{found} of {len(suspects)} were flipped; guessing would find "
        f"{result.train.flipped.mean() * len(suspects):.1f}.",
    )
    _add_review_columns(table)
    _add_reviews(table, result.train, suspects, -suspicion)
    return table


def neighbours_table(result: DemoResult, query: int) -> Table:
    """The training reviews that help and harm one test review most.

    Args:
        result: what was found.
        query: position of the test review.

    Returns:
        A table with the most helpful reviews above and the most harmful ones below.
    """
    influences = result.scores.influences[query]
    label, text = LABELS[result.test.labels[query]], result.test.texts[query]
    table = titled_table(
        f"What helps and what harms on this test review, which is {label}:\n{text}"
    )
    _add_review_columns(table)
    for chosen in (largest(influences, NEIGHBOURS), largest(-influences, NEIGHBOURS)[::-1]):
        _add_reviews(table, result.train, chosen, influences)
        table.add_section()
    return table


def _add_review_columns(table: Table) -> None:
    table.add_column("Influence", justify="right", no_wrap=True)
    table.add_column("Given label", no_wrap=True)
    table.add_column("Flipped", no_wrap=True)
    table.add_column("Review")


def _add_reviews(
    table: Table, reviews: Reviews, chosen: npt.NDArray[np.intp], influences: Floats
) -> None:
    for i in chosen:
        flipped = Text("flipped", style="red") if reviews.flipped[i] else ""
        label = LABELS[reviews.labels[i]]
        table.add_row(f"{influences[i]:+.2e}", label, flipped, Text(visible(reviews.texts[i])))
