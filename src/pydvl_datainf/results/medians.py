"""Medians over queries of all scores of a run, in bounded memory."""

from collections.abc import Iterator

import numpy as np

from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.stored import Stored

AT_ONCE = 2**24
"""Scores that are held at once: 128 MiB in float64, and as much while they are put in order."""


def column_medians(store: Stored, plan: Plan, at_once: int = AT_ONCE) -> Array:
    """The median over the queries of each training sample's scores.

    Args:
        store: of a complete run that kept all scores.
        plan: how it is cut.
        at_once: scores that are held at once, though at least those of one training sample. Chunks
            of tiles with more are read several times.

    Returns:
        Medians, (n,), in float64.
    """
    return np.concatenate([_medians(store, plan, part) for part in _parts(store, plan, at_once)])


def _medians(store: Stored, plan: Plan, wanted: slice) -> Array:
    """Those of neighbouring training samples."""
    scores = np.empty((plan.m, wanted.stop - wanted.start))
    for queries in plan.test:
        read = store.read("scores", (queries, ..., wanted))
        scores[queries] = read.sum(1, dtype=np.float64) if read.ndim == 3 else read
    medians: Array = np.median(scores, axis=0, overwrite_input=True)
    return medians


def _parts(store: Stored, plan: Plan, at_once: int) -> Iterator[slice]:
    """Tiles of training samples, cut to what may be held; by block, a tile of queries has more."""
    blocks = store.array("scores").shape[1] if store.array("scores").ndim == 3 else 1
    width = max(1, at_once // max(plan.m, plan.test_tile * blocks))
    for tile in plan.train:
        for start in range(tile.start, tile.stop, width):
            yield slice(start, min(start + width, tile.stop))
