"""Which whole rows of training samples a run keeps until they are projected, and in which order."""

from collections.abc import Sequence

import numpy as np

from pydvl_datainf.gradients.compressed import Positions
from pydvl_datainf.inverse.compression import Compression

EMPTY = -1
"""In the place of a position, where an array of whole rows has nothing."""


def kept_positions(compression: Compression, lengths: Sequence[int]) -> Positions:
    """Training samples whose whole rows are kept.

    Those that bases are learned from and compared over; and, of a batch of which these are half or
    more, all others too, since one pass over it takes less than two over its parts.

    Args:
        compression: how rows are compressed.
        lengths: samples in each batch.

    Returns:
        Positions, in ascending order.
    """
    sizes, stops = np.asarray(lengths), np.cumsum(lengths)
    wanted = compression.kept_whole(int(stops[-1]))
    batches, counts = np.unique(np.searchsorted(stops, wanted, side="right"), return_counts=True)
    whole = batches[2 * counts >= sizes[batches]]
    members = [np.arange(stops[batch] - sizes[batch], stops[batch]) for batch in whole]
    kept: Positions = np.unique(np.concatenate([wanted, *members]))
    return kept


def kept_in_parts(compression: Compression, lengths: Sequence[int], step: int) -> Positions:
    """The same in parts of `step`, each of which is computed and written by itself.

    A batch lies in one part, unless it has more: its rows come from the same pass, whatever else is
    there already.

    Args:
        compression: how rows are compressed.
        lengths: samples in each batch.
        step: samples in a part; what is left of it is `EMPTY`, but for the last.

    Returns:
        Positions, in ascending order but for what is empty.
    """
    positions = kept_positions(compression, lengths)
    batches = np.searchsorted(np.cumsum(lengths), positions, side="right")
    firsts = np.unique(batches, return_index=True)[1]
    parts: list[list[int]] = [[]]
    for own in np.split(positions, firsts[1:]):
        for at in range(0, len(own), step):
            if len(parts[-1]) + len(own[at : at + step]) > step:
                parts[-1] += [EMPTY] * (step - len(parts[-1]))
                parts.append([])
            parts[-1] += own[at : at + step].tolist()
    return np.array([position for part in parts for position in part], dtype=np.int64)
