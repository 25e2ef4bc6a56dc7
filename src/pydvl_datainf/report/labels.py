"""How influence is distributed over the labels of training samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pydvl_datainf.evaluation import Floats, Indices
from pydvl_datainf.report.columns import json_value
from pydvl_datainf.store import Array

NAMES = ("label", "class", "class_label", "category", "target")
"""Columns that may hold a class label."""

MOST = 30
"""Different labels that are looked at; more are hardly classes."""

LONGEST = 40
"""Characters of a label."""


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What is found for each label.

    Attributes:
        column: that holds the labels.
        labels: of each training sample, for people, (n,).
        rows: for each label its name, how many samples have it, their mean influence on average,
            and how many of the suspects have it; the most harmful first.
        suspects: how many suspects there are.
    """

    column: str
    labels: Array
    rows: Sequence[tuple[str, int, float, int]]
    suspects: int

    def to_json(self) -> dict[str, Any]:
        """The counts for the page."""
        suspects = f"among_{self.suspects}_most_harmful"
        columns = [self.column, "samples", "mean_influence", suspects]
        return {"columns": columns, "rows": [list(row) for row in self.rows]}


def label_counts(
    columns: Mapping[str, Array], mean: Floats, suspects: Indices
) -> LabelCounts | None:
    """Counts samples and suspects of each label.

    Args:
        columns: what is known of the training samples.
        mean: their mean influences, (n,).
        suspects: positions of the most harmful ones.

    Returns:
        The counts, or None where no column holds class labels.
    """
    column = next((name for name in NAMES if _are_classes(columns.get(name))), None)
    if column is None:
        return None
    labels = np.array([shown(value) for value in columns[column].tolist()], dtype=object)
    counts: list[tuple[str, int, float, int]] = []
    for label in sorted(set(labels.tolist())):
        own = labels == label
        counts.append((label, int(own.sum()), float(mean[own].mean()), int(own[suspects].sum())))
    return LabelCounts(column, labels, sorted(counts, key=lambda row: row[2]), len(suspects))


def shown(label: Any) -> str:
    """A label for people.

    Args:
        label: a number, truth value or text.

    Returns:
        Its text, cut where it is long.
    """
    text = str(json_value(label)) or "(empty)"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _are_classes(values: Array | None) -> bool:
    if values is None or values.dtype.kind not in "biuO":
        return False
    return 1 < len(set(values.tolist())) <= min(MOST, len(values) // 2)
