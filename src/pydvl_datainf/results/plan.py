"""How a run is cut, in integers alone: tiles, groups of queries, spans, and what memory they take.

The scores of m queries on n training samples are cut into tiles. Queries are taken in groups whose
vectors fit in memory together; for each group the correction of the inverse is summed over spans of
training tiles, each by itself, so that spans can be computed anywhere, and added in their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import ceil
from typing import Any

from pydvl_datainf.errors import PlanError

Piece = tuple[int, int, int]
"""Samples `start` to `stop` (exclusive) of one batch: (batch, start, stop)."""

MOST_SPANS = 64
MOST_QUERIES = 512  # in a tile
MOST_TRAIN = 4096  # in a tile
CHUNK_BYTES = 2**24  # of one chunk of vectors, at most
CHUNK_SHARE = 64  # of the memory, what a chunk takes at most; and 2**16 at least
TRANSIT_SHARE = 16  # of the memory, what is on its way to or from the store takes
MOST_SAMPLED_TILES = 8  # from which samples are taken: each may have to be read whole
MOST_SAMPLED_QUERIES = 32


@dataclass(frozen=True, slots=True)
class Tiling:
    """The numbers 0 to total - 1, cut into runs of equal length; the last may be shorter.

    Args:
        total: how many there are.
        size: of each run.
    """

    total: int
    size: int

    def __len__(self) -> int:
        return ceil(self.total / self.size)

    def __iter__(self) -> Iterator[slice]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> slice:
        return slice(i * self.size, min((i + 1) * self.size, self.total))


@dataclass(frozen=True, slots=True)
class Task:
    """The size of what is asked.

    Args:
        n: training samples.
        m: queries: test samples, or groups of them.
        m_samples: test samples.
        widths: d_l of each block.
        itemsize: bytes of one number of a row, 4 or 8.
        precision: bytes of one number of a vector, of a factor and of what is added up for them.
        longest: samples in the longest batch.
        by_block: whether each block has scores of its own.
        top_k: how many training samples are kept at either end; None = all.
    """

    n: int
    m: int
    m_samples: int
    widths: Sequence[int]
    itemsize: int
    longest: int
    by_block: bool = False
    top_k: int | None = None
    precision: int = 8

    @property
    def row(self) -> int:
        """Bytes of one gradient."""
        return sum(self.widths) * self.itemsize

    @property
    def vector(self) -> int:
        """Bytes of one gradient of a query, or of one factor, as they are computed with."""
        return sum(self.widths) * self.precision


@dataclass(frozen=True, slots=True)
class Plan:
    """How a run is cut.

    Args:
        n: training samples.
        m: queries.
        n_parameters: D, the width of a row.
        test_tile: queries in a tile.
        train_tile: training samples in a tile.
        group_tiles: tiles of queries whose vectors are in memory together.
        span_tiles: training tiles whose corrections are summed before they are stored.
        step: the largest number of samples in one gradient computation.
        columns: parameters in a chunk of vectors.
        part: test samples whose gradients are summed before they are stored, for groups of them.
        self_tiles: training tiles whose self-influences are computed together.
        rows: "memory", "zarr" or "recompute".
    """

    n: int
    m: int
    n_parameters: int
    test_tile: int
    train_tile: int
    group_tiles: int
    span_tiles: int
    step: int
    columns: int
    part: int
    self_tiles: int
    rows: str

    @property
    def train(self) -> Tiling:
        """The training samples, cut into tiles."""
        return Tiling(self.n, self.train_tile)

    @property
    def test(self) -> Tiling:
        """The queries, cut into tiles."""
        return Tiling(self.m, self.test_tile)

    @property
    def groups(self) -> Tiling:
        """The tiles of queries, cut into groups."""
        return Tiling(len(self.test), self.group_tiles)

    @property
    def spans(self) -> Tiling:
        """The training tiles, cut into spans."""
        return Tiling(len(self.train), self.span_tiles)

    @property
    def self_groups(self) -> Tiling:
        """The training tiles, cut into groups whose self-influences are computed together."""
        return Tiling(len(self.train), self.self_tiles)

    def group(self, q: int) -> slice:
        """The queries of a group."""
        tiles = self.groups[q]
        return slice(self.test[tiles.start].start, self.test[tiles.stop - 1].stop)

    def sampled(self, samples: int) -> list[tuple[int, int]]:
        """Training tiles, evenly spaced, with how many of the first samples of each to take.

        Args:
            samples: how many to take together, about.

        Returns:
            Pairs of tile and number.
        """
        tiles, wanted = len(self.train), min(samples, self.n)
        count = min(tiles, max(min(MOST_SAMPLED_TILES, wanted), ceil(wanted / self.train_tile)))
        each = ceil(wanted / count) if wanted < self.n else self.train_tile
        chosen = (i * tiles // count for i in range(count))
        return [(j, min(each, self.train[j].stop - self.train[j].start)) for j in chosen]

    def as_attributes(self) -> dict[str, Any]:
        """The plan as numbers that JSON can hold."""
        return asdict(self)


def make_plan(
    task: Task,
    *,
    memory: int,
    rows: str,
    batch_size: int | None = None,
    tile: tuple[int | None, int | None] = (None, None),
    reserved: int = 0,
) -> Plan:
    """Chooses the sizes so that our arrays in one process fit in `memory`.

    Args:
        task: the size of what is asked.
        memory: bytes.
        rows: "memory", "zarr" or "recompute".
        batch_size: the largest number of samples in one gradient computation; None = the longest
            batch.
        tile: (queries, training samples) in a tile; None = chosen.
        reserved: bytes of it that other arrays take.

    Returns:
        The plan.

    Raises:
        PlanError: if a tile is not positive, or nothing fits.
    """
    test_tile, train_tile = (
        _checked_tile(size, name) for size, name in zip(tile, _SIDES, strict=True)
    )
    given, memory = memory, memory - reserved
    memory -= memory // TRANSIT_SHARE
    step = min(task.longest, batch_size or task.longest, max(1, memory // (16 * task.row)))
    train_tile = min(train_tile or _train_tile(task, memory, step), task.n)
    step = min(step, train_tile)
    while True:
        fixed = _fixed_bytes(task, rows, train_tile, step)
        most = (memory - fixed) // _query_bytes(task, train_tile, step)
        if most >= (test_tile or 1) or step == 1:
            break
        step //= 2
    if most < (test_tile or 1):
        least = _fixed_bytes(task, rows, tile[1] or 1, 1)
        least += (test_tile or 1) * _query_bytes(task, tile[1] or 1, 1)
        smallest = least + (least - 1) // (TRANSIT_SHARE - 1) + reserved
        raise PlanError(
            f"{given:,} bytes of memory are too few: a gradient takes {task.row:,}, "
            f"and with rows={rows!r} the smallest that works is memory={smallest:,}"
            + (f", for tiles of {tile}." if any(tile) else ".")
            + (_RESERVED.format(reserved) if reserved else "")
        )
    queries = min(most, task.m)
    if test_tile is None:
        most_in_tile = min(queries, MOST_QUERIES)
        test_tile = ceil(task.m / ceil(task.m / most_in_tile))
    test_tile = min(test_tile, task.m)
    group_tiles = max(1, min(most // test_tile, ceil(task.m / test_tile)))
    tiles = ceil(task.n / train_tile)
    spans = min(tiles, MOST_SPANS, max(4, task.n // (group_tiles * test_tile)))
    chunk_bytes = min(CHUNK_BYTES, max(2**16, memory // CHUNK_SHARE))
    return Plan(
        n=task.n,
        m=task.m,
        n_parameters=sum(task.widths),
        test_tile=test_tile,
        train_tile=train_tile,
        group_tiles=group_tiles,
        span_tiles=ceil(tiles / spans),
        step=step,
        columns=_even(sum(task.widths), max(1, chunk_bytes // (test_tile * task.precision))),
        part=max(256, 4 * task.m, ceil(task.m_samples / MOST_SPANS)),
        self_tiles=max(1, (memory - fixed) // (train_tile * _self_bytes(task, step))),
        rows=rows,
    )


_RESERVED = (
    " Of these the exact inverse takes {:,}, since it needs the rows of a block together; DataInf "
    "does not."
)


def solver_bytes(task: Task) -> int:
    """Bytes that the exact inverse takes beside vectors, of the largest block.

    Args:
        task: the size of what is asked.

    Returns:
        What its rows take as they are, put together and twice in float64, with a matrix and its
        factor.
    """
    sides = ((d, min(task.n, d)) for d in task.widths)
    return max(task.n * d * (2 * task.itemsize + 16) + 16 * k**2 for d, k in sides)


def sample_bytes(widths: Sequence[int], itemsize: int, n: int, m: int) -> int:
    """Bytes that a comparison with the exact inverse takes.

    Args:
        widths: d_l of each block.
        itemsize: bytes of one number of a row.
        n: training samples over which both inverses are taken.
        m: test samples, of which some are taken.

    Returns:
        Rows of the samples in pieces and together, in float64 as stored ones are, and once more of
        the largest block, with a matrix and its factor; vectors of the queries, in pieces and
        together, and in float64 as they are, with their corrections, and transformed twice.
    """
    D, d, queries = sum(widths), max(widths), min(MOST_SAMPLED_QUERIES, m)
    vectors = queries * D * (2 * itemsize + 4 * 8)
    return 2 * n * D * 8 + vectors + 8 * n * d + 16 * min(n, d) ** 2


def sampled_queries(m: int) -> list[slice]:
    """Some test samples, in evenly spaced stretches.

    Args:
        m: how many there are.

    Returns:
        From which sample to which, for each stretch.
    """
    stretches = Tiling(m, ceil(m / min(m, 4)))
    each = MOST_SAMPLED_QUERIES // len(stretches)
    return [slice(s.start, min(s.stop, s.start + each)) for s in stretches]


def fits_at_once(task: Task, memory: int, reserved: int = 0) -> bool:
    """Whether all training rows fit in memory together with the vectors of all queries.

    Args:
        task: the size of what is asked.
        memory: bytes.
        reserved: bytes of it that other arrays take.

    Returns:
        True if rows="memory" leads to one group of queries.
    """
    try:
        return len(make_plan(task, memory=memory, rows="memory", reserved=reserved).groups) == 1
    except PlanError:
        return False


def pieces(lengths: Sequence[int], wanted: slice, step: int) -> Iterator[Piece]:
    """Cuts the batches that hold some samples into pieces that hold no others.

    Args:
        lengths: samples in each batch.
        wanted: from which sample to which.
        step: the largest number of samples in a piece.

    Yields:
        Pieces, in the order of the samples.
    """
    stops = accumulate(lengths)
    for batch, (length, stop) in enumerate(zip(lengths, stops, strict=True)):
        first = max(wanted.start - (stop - length), 0)
        last = min(wanted.stop - (stop - length), length)
        for start in range(first, last, step):
            yield batch, start, min(start + step, last)


_SIDES = ("test", "train")


def _checked_tile(size: int | None, side: str) -> int | None:
    if size is not None and (type(size) is not int or size < 1):
        raise PlanError(
            f"The {side} side of a tile must be a positive number or None, got {size!r}."
        )
    return size


def _train_tile(task: Task, memory: int, step: int) -> int:
    """About 1/32 of the samples: what a stop loses at most; whole pieces, and rows that fit."""
    wanted = min(max(ceil(task.n / 32), 16 * (task.top_k or 0)), MOST_TRAIN)
    fitting = max(1, memory // (8 * task.row))
    return max(1, min(ceil(wanted / step) * step, fitting // step * step or fitting))


def _even(total: int, most: int) -> int:
    """The length of pieces, at most `most`, that are as even as can be: a short one is padded."""
    return ceil(total / ceil(total / most))


def _fixed_bytes(task: Task, rows: str, train_tile: int, step: int) -> int:
    """What does not depend on the number of queries."""
    # Rows of a piece, as computed or two of them as decoded, and one block as it is multiplied.
    computed = step * (max(3 * task.row, 2 * task.vector) + max(task.widths) * task.precision)
    stored = 6 * train_tile * sum(task.widths)  # a tile in half precision, encoded and decoded
    kept = task.n * task.row
    return computed + {"memory": kept, "zarr": stored, "recompute": 0}[rows]


def _query_bytes(task: Task, train_tile: int, step: int) -> int:
    """Vector and correction of a query, a product with a block, and its scores on a tile."""
    scores = 2 * train_tile * (len(task.widths) if task.by_block else 1) * task.itemsize
    return 2 * task.vector + (max(task.widths) + 2 * step) * task.precision + scores


def _self_bytes(task: Task, step: int) -> int:
    """Row of a sample whose self-influence is computed, and products with the rows of a piece."""
    return task.vector + 2 * step * task.precision
