"""How influence is distributed over the labels of training samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np

from pydvl_datainf.evaluation import Floats, Indices
from pydvl_datainf.report.columns import json_value
from pydvl_datainf.results.arrays import Array

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
    values = columns[column].tolist()
    names = names_of(values)
    labels = np.array([names[value] for value in values], dtype=object)
    counts: list[tuple[str, int, float, int]] = []
    for label in sorted(names.values()):
        own = labels == label
        counts.append((label, int(own.sum()), float(mean[own].mean()), int(own[suspects].sum())))
    return LabelCounts(column, labels, sorted(counts, key=lambda row: row[2]), len(suspects))


def uncounted(columns: Mapping[str, Array]) -> dict[str, int]:
    """Columns that may hold class labels, but with too many different ones to be counted.

    Args:
        columns: what is known of the training samples.

    Returns:
        The number of different labels by name of the column.
    """
    there = {name: columns[name] for name in NAMES if name in columns}
    counts = {name: len(set(v.tolist())) for name, v in there.items() if _are_labels(v)}
    return {name: count for name, count in counts.items() if count > _most(there[name])}


def names_of(labels: Iterable[Any]) -> dict[Any, str]:
    """Labels for people.

    Args:
        labels: numbers, truth values or texts, some of them often.

    Returns:
        For each different label its text, cut where it is long; with a number where another label
        has the same.
    """
    whole = {label: str(json_value(label)) for label in labels}
    names = {label: text for label, text in whole.items() if text and len(text) <= LONGEST}
    taken = set(names.values())
    for label, text in sorted(whole.items(), key=lambda item: item[1]):
        if label in names:
            continue
        short = f"{text[:LONGEST]}…" if text else "(empty)"
        numbered = chain([short], (f"{short} ({i})" for i in count(2)))
        names[label] = next(name for name in numbered if name not in taken)
        taken.add(names[label])
    return names


def _are_classes(values: Array | None) -> bool:
    if values is None or not _are_labels(values):
        return False
    return 1 < len(set(values.tolist())) <= _most(values)


def _are_labels(values: Array) -> bool:
    return values.dtype.kind in "biuO"


def _most(values: Array) -> int:
    return min(MOST, len(values) // 2)
