"""The largest or smallest scores of each query, a tile of training samples at a time."""

from dataclasses import dataclass, field

import numpy as np

from pydvl_datainf.results.arrays import Array

AT_ONCE = 2**18
"""How many scores are put in order at once: their order takes twice the memory that they take."""


@dataclass(slots=True)
class Best:
    """The best scores so far, to which those of further training samples are added.

    Args:
        end: 0 = largest first, 1 = smallest first.
        k: how many are kept.
        positions: of training samples, (m, up to k); of equal scores the lower position first.
        scores: of these, (m, up to k).
    """

    end: int
    k: int
    positions: Array = field(init=False)
    scores: Array = field(init=False)
    _is_empty: bool = field(default=True, init=False)

    def add(self, positions: Array, scores: Array) -> None:
        """Adds training samples that come after those that are there.

        Args:
            positions: (m, b), equal scores in the order of their positions.
            scores: (m, b).
        """
        if not self._is_empty:
            positions = np.concatenate([self.positions, positions], 1)
            scores = np.concatenate([self.scores, scores], 1)
        order = self._order(scores)
        self.positions = np.take_along_axis(positions, order, axis=1)
        self.scores = np.take_along_axis(scores, order, axis=1)
        self._is_empty = False

    def add_tile(self, scores: Array, first: int) -> None:
        """Adds neighbouring training samples that come after those that are there.

        Args:
            scores: (m, b).
            first: the position of the first sample.
        """
        rows = max(1, AT_ONCE // scores.shape[1])
        parts = (scores[start : start + rows] for start in range(0, len(scores), rows))
        order = np.concatenate([self._order(part) for part in parts])
        self.add(first + order, np.take_along_axis(scores, order, axis=1))

    def _order(self, scores: Array) -> Array:
        return np.argsort(scores if self.end else -scores, axis=1, kind="stable")[:, : self.k]
