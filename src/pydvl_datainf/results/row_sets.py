"""The sets of training rows of a run: those that are scored, and those that its inverse is made of.

They are the same but under another curvature, as the true Gauss-Newton matrix, whose rows are
gradients at other labels, one or several for each training sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydvl_datainf.results.arrays import CURVATURE, ROWS


@dataclass(frozen=True, slots=True)
class RowSet:
    """What the arrays of some rows are called, and how many rows a training sample has.

    The rows of the samples of a chunk are in one chunk, in no order that follows from theirs where
    there are several of each.

    Args:
        folder: of the rows, by piece of blocks.
        scales: by which the rows in half precision are multiplied.
        norms: their squared norms.
        axis: the name of the first dimension.
        each: rows of a training sample.
    """

    folder: str
    scales: str
    norms: str
    axis: str
    each: int = 1

    def name(self, piece: int) -> str:
        """The array of the rows of a piece of blocks."""
        return f"{self.folder}/{piece}"

    def of(self, samples: slice) -> slice:
        """The rows of some training samples."""
        return slice(self.each * samples.start, self.each * samples.stop)


SCORED = RowSet(ROWS, "row_scales", "squared_norms", "train")
"""The gradients of the training samples."""


def curvature_rows(each: int) -> RowSet:
    """Rows of the inverse alone, so many of each training sample."""
    return RowSet(CURVATURE, "curvature_scales", "curvature_norms", "curvature_row", each)


def rows_of_inverse(each: int) -> RowSet:
    """The rows that an inverse is made of: so many of each sample; 0 = those that are scored."""
    return curvature_rows(each) if each else SCORED


def row_sets(each: int) -> tuple[RowSet, ...]:
    """All rows of a run, whose inverse has so many of its own of each sample."""
    return (SCORED, curvature_rows(each)) if each else (SCORED,)


def rows_each(fingerprint: Mapping[str, Any]) -> int:
    """How many rows of its own the inverse of a run has of each training sample."""
    said: int = fingerprint.get(CURVATURE, {}).get("rows", 0)
    return said
