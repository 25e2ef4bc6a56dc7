"""Learns bases from some training samples, and keeps the rows of all as coordinates in them."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pydvl_datainf.batches import Batch, batch_length, take_batch
from pydvl_datainf.errors import NonFiniteError, SourceError
from pydvl_datainf.fingerprint import DataChecksum
from pydvl_datainf.gradients.layer_tokens import linear_blocks_of
from pydvl_datainf.gradients.side_learning import SideLearner
from pydvl_datainf.gradients.sided import on_sides, small_rows, whole_squares
from pydvl_datainf.gradients.sources import (
    Reader,
    check_readable,
    check_repeatable,
    count_samples,
    has_fixed_order,
)
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.coordinates import learn_bases, learn_ranks, projected, remainders
from pydvl_datainf.inverse.damping import SquaredNorms
from pydvl_datainf.inverse.sides import Sides
from pydvl_datainf.vectors import BlockVectors, concatenated, length

Positions = npt.NDArray[np.int64]
Weigh = Callable[[Tensor, Tensor, float], Tensor]
"""`Method.weighed`."""


@dataclass(frozen=True, slots=True)
class CompressedRows:
    """Coordinates of rows, and what these have outside of the bases.

    Args:
        kept: for each chunk the coordinates, (b, r_l).
        outside: for each chunk ‖g‖² − ‖c‖² of each row, (b,), in float64.
        n: the number of samples in all chunks.
        bases: of the blocks that are not kept whole, (r_l, d_l), or (r_l, a b) behind side bases.
        sides: of the blocks that have side bases.
    """

    kept: list[BlockVectors]
    outside: list[BlockVectors]
    n: int
    bases: BlockVectors
    sides: Mapping[str, Sides] = field(default_factory=dict)

    def chunks(self) -> Iterator[BlockVectors]:
        """Yields the coordinates chunk by chunk."""
        yield from self.kept

    def weighed(self, weigh: Weigh, damping: Mapping[str, float]) -> Iterator[BlockVectors]:
        """What solvers are fed in place of the coordinates.

        Args:
            weigh: of the method.
            damping: λ of each block.

        Yields:
            For each chunk that, of every block.
        """
        for coordinates, outside in zip(self.kept, self.outside, strict=True):
            yield OrderedDict(
                (block, weigh(C, outside[block], damping[block]))
                for block, C in coordinates.items()
            )

    @property
    def ranks(self) -> dict[str, int]:
        """Numbers that are kept of each block."""
        return {block: C.shape[1] for block, C in self.kept[0].items()}

    def sum_outside(self) -> dict[str, float]:
        """For each block Σ_i (‖g_i‖² − ‖c_i‖²)."""
        return {b: sum(float(s[b].sum()) for s in self.outside) for b in self.outside[0]}

    def to(self, device: torch.device) -> "CompressedRows":
        """Moves coordinates and bases of both kinds; returns a new source."""

        def moved(vectors: BlockVectors) -> BlockVectors:
            return OrderedDict((block, v.to(device)) for block, v in vectors.items())

        kept, outside = list(map(moved, self.kept)), list(map(moved, self.outside))
        sides = {block: one.to(device) for block, one in self.sides.items()}
        return CompressedRows(kept, outside, self.n, moved(self.bases), sides)


def read_compressed(
    reader: Reader, compression: Compression
) -> tuple[CompressedRows, SquaredNorms]:
    """Reads the data three times: counts it, learns the bases, and keeps coordinates.

    Side bases, where there are some, take a further pass before the second, with gradients of the
    sample. Then whole rows are made only where capture compares what it computes, or cannot tell
    them from tokens, of one batch at once.

    Rows that the bases are learned from are kept until they are projected, so that none is computed
    twice; but for data without fixed order, where they would not be known again. Of streams, which
    are taken to be in fixed order, checksums tell whether they are.

    Args:
        reader: reads the data.
        compression: how.

    Returns:
        The source, and sums of squared norms of whole rows.

    Raises:
        SourceError: if the data cannot be read again, is empty, or is other data or in another
            order when it is.
    """
    check_readable(reader.data)
    check_repeatable(reader.data)
    n = count_samples(reader)
    first, again = DataChecksum(), DataChecksum()
    chosen = compression.positions(n)
    sides = _sides(reader, compression, chosen)
    reader = replace(reader, engine=on_sides(reader.engine, sides))
    sample = concatenated(list(_rows_of(replace(reader, seen=first), chosen)))
    small = small_rows(sample, sides)
    bases = learn_bases(learn_ranks(compression, small), small)
    if not has_fixed_order(reader.data):
        chosen, sample = chosen[:0], OrderedDict()
    kept, outside, sums, done = [], [], dict[str, float](), 0
    for batch in replace(reader, seen=again).batches("gradients"):
        rows = joined_rows(batch, done, chosen, lambda at: _at(sample, at), reader.engine.rows)
        squares = whole_squares(rows, sides)
        coordinates = projected(small_rows(rows, sides), bases, torch.float64)
        kept.append(coordinates)
        outside.append(remainders(squares, coordinates))
        for block, norms in squares.items():
            sums[block] = sums.get(block, 0.0) + float(norms.sum())
        done += length(rows)
    if done != n:
        raise SourceError(
            f"The training data yielded {done} samples where the first pass had {n}. Use a loader "
            'that yields the same samples on every pass, or rows="memory".'
        )
    if len(chosen) and again.sums != first.sums:
        raise SourceError(
            "The training data yielded other samples on another pass, or the same in another "
            "order, so rows that were kept would stand for others. Use data that is the same on "
            'every pass, a DataLoader with shuffle=True, or rows="memory".'
        )
    return CompressedRows(kept, outside, n, bases, sides), SquaredNorms(sums, n)


def _sides(reader: Reader, compression: Compression, chosen: Positions) -> dict[str, Sides]:
    """The side bases of the blocks that get some, from the rows of chosen samples."""
    if compression.sides is None:
        return {}
    shapes = {block: layer.shape for block, layer in linear_blocks_of(reader.engine).items()}
    wanted = compression.side_widths(shapes)
    learner = SideLearner(reader.engine, wanted)
    if not wanted:
        return {}
    for _ in _rows_of(replace(reader, engine=learner, seen=None), chosen):
        pass
    return learner.sides()


def joined_rows(
    batch: Batch,
    first: int,
    chosen: Positions,
    known: Callable[[slice], BlockVectors],
    compute: Callable[[Batch], BlockVectors],
) -> BlockVectors:
    """The rows of a batch, some of which are known.

    Args:
        batch: of b samples.
        first: the position of its first sample.
        chosen: positions of samples whose rows are known, in ascending order.
        known: gives the rows of some of these.
        compute: computes rows of a batch.

    Returns:
        For each block rows, (b, d_l).
    """
    start, stop = np.searchsorted(chosen, [first, first + batch_length(batch)])
    if start == stop:
        return compute(batch)
    place = slice(int(start), int(stop))
    here = chosen[place] - first
    others = np.setdiff1d(np.arange(batch_length(batch)), here)
    parts = [known(place)]
    if len(others):
        parts.append(rows_at(batch, others, compute))
    order = torch.from_numpy(np.argsort(np.concatenate([here, others])))
    return _taken(concatenated(parts), order)


def rows_at(
    batch: Batch, positions: Positions, compute: Callable[[Batch], BlockVectors]
) -> BlockVectors:
    """Computes the rows of some samples of a batch.

    Args:
        batch: of which they are.
        positions: of the samples in it.
        compute: computes rows of a batch.

    Returns:
        For each block rows, (b, d_l).

    Raises:
        NonFiniteError: if a gradient is not finite; with the sample's position in the batch.
    """
    try:
        return compute(take_batch(batch, torch.from_numpy(positions)))
    except NonFiniteError as error:
        sample = int(positions[error.sample])
        told = f"Sample {sample} of the batch, computed with some others: {error}"
        raise NonFiniteError(told, sample) from error


def _rows_of(reader: Reader, chosen: Positions) -> Iterator[BlockVectors]:
    """The rows of chosen samples, in their order."""
    done = 0
    for batch in reader.batches("basis"):
        stop = done + batch_length(batch)
        here = chosen[(chosen >= done) & (chosen < stop)] - done
        if len(here):
            yield rows_at(batch, here, reader.engine.rows)
        done = stop


def _at(vectors: BlockVectors, place: slice) -> BlockVectors:
    return OrderedDict((block, v[place]) for block, v in vectors.items())


def _taken(vectors: BlockVectors, order: Tensor) -> BlockVectors:
    return OrderedDict((block, v[order.to(v.device)]) for block, v in vectors.items())
