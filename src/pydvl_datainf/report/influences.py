"""What a page shows of the influences of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from pydvl_datainf.evaluation import Floats, Indices, largest
from pydvl_datainf.report.bounds import Bounds
from pydvl_datainf.report.columns import shortest
from pydvl_datainf.report.samples import Samples
from pydvl_datainf.results.layout import ENDS, End
from pydvl_datainf.results.measures import MEASURES
from pydvl_datainf.results.reader import InfluenceRun

MOST_SCORES = 2 * 10**7
"""Influences that are read for one page: all of them for medians, or those by block."""


@dataclass(frozen=True, slots=True)
class Tops:
    """The training samples with the most influence on each of the first test samples.

    Attributes:
        positions: of training samples, (m', k), at either end.
        influences: of them, (m', k), at either end.
    """

    positions: Mapping[End, Indices]
    influences: Mapping[End, Floats]

    @property
    def k(self) -> int:
        """Training samples at either end."""
        return int(self.positions["helpful"].shape[1])

    @property
    def m(self) -> int:
        """Test samples."""
        return len(self.positions["helpful"])

    def all_positions(self) -> list[Indices]:
        """Positions of all training samples at either end, some of them often."""
        return [positions.ravel() for positions in self.positions.values()]


def tops_of(run: InfluenceRun, bounds: Bounds) -> Tops:
    """Reads the tops of the first test samples, a tile at a time.

    Args:
        run: complete.
        bounds: how many test samples, and how many training samples of each.

    Returns:
        The tops.
    """
    k = min(bounds.k, run.plan.n if run.top_k is None else run.top_k, run.plan.n)
    shown = min(bounds.tests, run.plan.m)
    tiles = [
        slice(t.start, min(t.stop, shown))
        for t in takewhile(lambda tile: tile.start < shown, run.plan.test)
    ]
    found = {end: [run.top_positions(tile, k, end) for tile in tiles] for end in ENDS}
    positions, influences = (
        {end: np.concatenate([parts[i] for parts in found[end]]) for end in ENDS} for i in (0, 1)
    )
    return Tops(positions, influences)


def measures_of(run: InfluenceRun) -> dict[str, Floats]:
    """What is known of the influence of each training sample as a whole.

    Args:
        run: complete.

    Returns:
        Numbers, (n,) each, by their names in `MEASURES`: of what the run kept, but medians only
        where they do not take too many scores.
    """
    few_scores = count_scores(run) <= MOST_SCORES
    return {
        name: measure.read(run)
        for name, measure in MEASURES.items()
        if measure.is_there(run) and (few_scores or "scores" not in measure.takes)
    }


def suspects_of(measures: Mapping[str, Floats], count: int) -> Indices:
    """The most suspicious training samples by any of the measures.

    Args:
        measures: as `measures_of` gives them.
        count: by each measure.

    Returns:
        Positions, those with the most harmful mean first.
    """
    suspicions = [v if MEASURES[name].is_suspicion else -v for name, v in measures.items()]
    chosen = np.unique(np.concatenate([largest(s, count) for s in suspicions]))
    order: Indices = chosen[np.argsort(measures["mean"][chosen], kind="stable")]
    return order


def tops_to_json(tops: Tops, train: Samples) -> dict[str, Any]:
    """The tops for the page.

    Args:
        tops: of the test samples shown.
        train: the training samples shown, all of the tops among them.

    Returns:
        For each end a list of numbers of training samples and one of influences a test sample.
    """
    return {
        end: {
            "rows": [train.rows(positions) for positions in tops.positions[end]],
            "influences": [shortest(values) for values in tops.influences[end]],
        }
        for end in ENDS
    }


def scores_by_block(run: InfluenceRun) -> Floats | None:
    """Influences by block, where the run keeps them and they are not too many to be read at once.

    Args:
        run: complete.

    Returns:
        Influences, (m, L, n), or None; also None if their sums over blocks are all zero, of which
        no block can have a share.
    """
    count = count_by_block(run)
    if not count or count > MOST_SCORES:
        return None
    values = run.store.read("scores")
    return values if values.sum(1).any() else None


def count_scores(run: InfluenceRun) -> int:
    """How many influences a run keeps, those by block all counted; 0 where it keeps the top."""
    scores = run.scores
    return 0 if scores is None else scores.size


def count_by_block(run: InfluenceRun) -> int:
    """How many influences by block a run keeps.

    Args:
        run: complete or not.

    Returns:
        Their number; 0 where it keeps only their sums.
    """
    scores = run.scores
    return 0 if scores is None or scores.ndim != 3 else scores.size
