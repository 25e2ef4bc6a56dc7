"""For which label of a training sample the test side argues: a suggestion for a person to check."""

from collections.abc import Sequence

import numpy as np

from pydvl_datainf.errors import StoreError
from pydvl_datainf.evaluation import Floats, Indices
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.selection import mean_on

LABEL = "label"


def suggest_labels(run: InfluenceRun, positions: Indices) -> list[str | None]:
    """Suggests another label for some training samples.

    A sample with a wrong label pulls what it looks like towards that label, which harms test
    samples that look alike and have the right one. So the suggestion is the label of those test
    samples that it harms most on average, its own label excepted.

    Args:
        run: complete, of a classification: with a column `label` on both sides.
        positions: of training samples.

    Returns:
        For each of them a label; None where it harms the test samples of no other label on average.

    Raises:
        StoreError: if there are no labels, both sides have none in common, or the run kept only
            the top scores.
    """
    sides = {side: run.metadata(side) for side in ("train", "test")}
    if any(LABEL not in columns for columns in sides.values()):
        raise StoreError(
            f"{run.store} has no column '{LABEL}' on both sides: another label is suggested for "
            "classifications alone."
        )
    given, of_test = (sides[side][LABEL].astype(str) for side in ("train", "test"))
    labels = sorted(set(of_test.tolist()))
    if set(given.tolist()).isdisjoint(labels):
        some = ", ".join(sorted(set(given.tolist()))[:3])
        raise StoreError(
            f"No label of the training samples in {run.store} ({some}) is one of the test samples' "
            f"({', '.join(labels[:3])}). Write those of both sides alike, all as numbers or all as "
            "names, and make the run again."
        )
    own = given[positions]
    harm = np.stack([mean_on(run, np.flatnonzero(of_test == label)) for label in labels], 1)
    return [_worst(harm[k], labels, label) for k, label in zip(positions, own, strict=True)]


def _worst(means: Floats, labels: Sequence[str], own: str) -> str | None:
    """The label whose test samples are harmed most, if those of another label are at all."""
    others = [i for i, label in enumerate(labels) if label != own and means[i] < 0]
    return labels[min(others, key=lambda i: float(means[i]))] if others else None
