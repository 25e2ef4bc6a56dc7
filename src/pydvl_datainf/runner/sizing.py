"""Chooses how a run is cut, so that our arrays in one process fit in memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, NamedTuple

from pydvl_datainf.errors import PlanError
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.results.plan import Plan, Tiling

MOST_SPANS = 64
MOST_QUERIES = 512  # in a tile
MOST_TRAIN = 4096  # in a tile
MOST_PIECES = 16  # but for more that memory wants: enough for many workers to share
MOST_CHUNK = 512  # rows that are decoded at once
CHUNK_BYTES = 2**24  # of one chunk of vectors, at most
CHUNK_SHARE = 64  # of the memory, what a chunk takes at most; and 2**16 at least
HELD_SHARE = 2  # of the memory, what the rows of a piece take, at most
DECODED_SHARE = 4  # of that, what the decoded rows of a block may take beside it
TRANSIT_SHARE = 16  # of the memory, what is on its way to or from the store takes
CHUNKS_IN_TRANSIT = 4  # of one reading: Zarr reads several side by side
PART = 4  # numbers of a stored row, in half precision, take as much as a part of a score
MOST_SAMPLED_QUERIES = 32


@dataclass(frozen=True, slots=True)
class RunSize:
    """The size of what is asked.

    Args:
        n: training samples.
        m: queries: test samples, or groups of them.
        m_samples: test samples.
        widths: numbers of each block in a row: d_l, or of coordinates.
        itemsize: bytes of one number of a row, 4 or 8.
        longest: samples in the longest batch.
        method: whose costs count.
        by_block: whether each block has scores of its own.
        top_k: how many training samples are kept at either end; None = all.
        precision: bytes of one number of a vector, and of what the inverse makes of it.
        moments: bytes that second moments of layers take, all together, and eigenvectors of one.
        whole: d_l of each block, where widths are those of coordinates.
        bases: shapes of the bases of compressed rows, (r, d_l).
        basis_sample: training samples whose whole rows they are learned from and compared over.
        curvature: rows of each training sample that only the inverse is made of.
    """

    n: int
    m: int
    m_samples: int
    widths: Sequence[int]
    itemsize: int
    longest: int
    method: Method
    by_block: bool = False
    top_k: int | None = None
    precision: int = 8
    moments: int = 0
    whole: Sequence[int] = ()
    bases: Sequence[tuple[int, int]] = ()
    basis_sample: int = 0
    curvature: int = 0

    @property
    def each(self) -> int:
        """Rows of a training sample that the inverse is made of."""
        return max(1, self.curvature)

    @property
    def rows(self) -> int:
        """Rows of all training samples together."""
        return self.n * (1 + self.curvature)

    @property
    def gradient(self) -> int:
        """Bytes of one gradient as it is computed."""
        return sum(self.whole or self.widths) * self.itemsize

    @property
    def basis_bytes(self) -> int:
        """Bytes of all bases, and of one that is being read."""
        sizes = [r * d for r, d in self.bases]
        return self.itemsize * (sum(sizes) + max(sizes, default=0))

    @property
    def learning(self) -> int:
        """Bytes while the basis of the widest block is learned, and compared with whole rows.

        Rows of the sample, as read and in float64, their orthonormal factor and what that is
        computed with; the small factor's singular vectors; and the basis, before it is rounded. A
        solver over whole rows, and gradients of some queries in all blocks.
        """
        b, d = self.basis_sample, max((d for _, d in self.bases), default=0)
        r = max((r for r, _ in self.bases), default=0)
        queries = min(MOST_SAMPLED_QUERIES, self.m_samples)
        compared = self.method.bytes(b, queries, d) + 2 * queries * self.gradient if b else 0
        learned = b * d * (2 * self.itemsize + 3 * 8) + 4 * 8 * min(b, d) ** 2 + 2 * 8 * r * d
        return learned + compared

    @property
    def row(self) -> int:
        """Bytes of one gradient, as the rows are."""
        return sum(self.widths) * self.itemsize

    @property
    def vector(self) -> int:
        """Bytes of one gradient of a query as it is computed with."""
        return sum(self.widths) * self.precision


def make_plan(
    asked: RunSize,
    *,
    memory: int,
    rows: str,
    batch_size: int | None = None,
    tile: tuple[int | None, int | None] = (None, None),
    pieces: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Chooses the sizes so that our arrays in one process fit in `memory`.

    Args:
        asked: the size of what is asked.
        memory: bytes.
        rows: "memory", "zarr" or "recompute".
        batch_size: the largest number of samples in one gradient computation; None = the longest
            batch.
        tile: (queries, training samples) in a tile; None = chosen.
        pieces: as stored rows are cut; None = chosen.

    Returns:
        The plan.

    Raises:
        PlanError: if a tile is not positive, or nothing fits.
    """
    sides = [_checked_tile(size, name) for size, name in zip(tile, _SIDES, strict=True)]
    fitted = _fitted(asked, memory, rows, batch_size, sides, pieces)
    if fitted is None:
        works = partial(_fitted, asked, rows=rows, size=batch_size, tile=sides, pieces=pieces)
        raise PlanError(_too_few(asked, memory, rows, sides, _smallest(works, memory)))
    return fitted


def _fitted(asked: RunSize, memory: int, *settings: Any, **named: Any) -> Plan | None:
    """A plan for this memory, or for less: more of it makes larger pieces, which may not fit."""
    attempts = (_planned(asked, memory * k // 16, *settings, **named) for k in range(16, 3, -1))
    return next((plan for plan in attempts if plan is not None), None)


def _planned(
    asked: RunSize,
    memory: int,
    rows: str,
    size: int | None,
    tile: Sequence[int | None],
    pieces: Sequence[Sequence[int]] | None,
) -> Plan | None:
    """The plan, or None where memory is too small for one."""
    given, memory = memory, memory - memory // TRANSIT_SHARE - asked.moments
    test_tile, train_tile = tile
    test_tile = None if test_tile is None else min(test_tile, asked.m)
    at_least = 16 * asked.each * asked.gradient
    step = min(asked.longest, size or asked.longest, max(1, memory // at_least))
    train_tile = min(train_tile or _train_tile(asked, memory, step), asked.n)
    held, is_cut = memory // HELD_SHARE, pieces is None and rows == "zarr"
    if pieces is None:
        pieces = _cut(asked, held) if rows == "zarr" else [(len(asked.widths), sum(asked.widths))]
    step = min(step, train_tile)
    needed = partial(_needs, asked, rows, pieces, test_tile or 0, train_tile, held=held)
    step, room, most = _step_that_fits(needed, memory, step, test_tile or 1)
    if most < (test_tile or 1):
        finer = is_cut and len(pieces) < len(asked.widths)
        single = [(1, width) for width in asked.widths]
        return _planned(asked, given, rows, size, tile, single) if finer else None
    test_tile, group_tiles = _queries_at_once(asked, most, test_tile, len(pieces), memory)
    tiles = ceil(asked.n / train_tile)
    spans = min(tiles, MOST_SPANS, max(4, asked.n // (group_tiles * test_tile)))
    chunk_bytes = min(CHUNK_BYTES, max(2**16, memory // CHUNK_SHARE))
    widest = max(width for _, width in pieces)
    return Plan(
        n=asked.n,
        m=asked.m,
        n_parameters=sum(asked.widths),
        pieces=tuple(map(tuple, pieces)),
        test_tile=test_tile,
        train_tile=train_tile,
        group_tiles=group_tiles,
        span_tiles=ceil(tiles / spans),
        step=step,
        chunk=_chunk(asked, train_tile, held) if rows == "zarr" else step,
        held=held if rows == "zarr" else max(1, room // 2),
        columns=_even(widest, max(1, chunk_bytes // (test_tile * asked.precision))),
        part=max(256, 4 * asked.m, ceil(asked.m_samples / MOST_SPANS)),
        self_tiles=max(1, room // (train_tile * _self_bytes(asked, step))),
        rows=rows,
    )


def _step_that_fits(
    needed: Callable[[int], "_Needs"], memory: int, step: int, least: int
) -> tuple[int, int, int]:
    """Halves the samples in a gradient computation until so many queries fit, or it has one.

    Args:
        needed: the needs of a step.
        memory: bytes.
        step: samples, at most.
        least: queries.

    Returns:
        The step, the bytes that it leaves to queries, and how many queries these are.
    """
    while True:
        needs = needed(step)
        room = memory - needs.fixed
        most = room // needs.query if room > 0 and memory >= needs.tile else 0
        if most >= least or step == 1:
            return step, room, most
        step //= 2


def _queries_at_once(
    asked: RunSize, most: int, test_tile: int | None, pieces: int, memory: int
) -> tuple[int, int]:
    """How many queries make a tile, and how many tiles a group, where at most so many fit."""
    if pieces > 1 and not asked.by_block:
        most = min(most, max(test_tile or 1, sum(asked.widths) // (PART * pieces)))
    if test_tile is None:
        at_once = min(most, asked.m, MOST_QUERIES, max(1, memory // (4 * asked.vector)))
        test_tile = ceil(asked.m / ceil(asked.m / at_once))
    return test_tile, max(1, min(most // test_tile, ceil(asked.m / test_tile)))


def _smallest(works: Callable[..., Plan | None], least: int) -> int:
    """The smallest memory that works, beyond one that does not."""
    most = 2 * least
    while works(memory=most) is None:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if works(memory=middle) is None else (least, middle)
    return most


def fits_at_once(asked: RunSize, memory: int) -> bool:
    """Whether all training rows fit in memory together with the vectors of all queries.

    Args:
        asked: the size of what is asked.
        memory: bytes.

    Returns:
        True if rows="memory" leads to one group of queries.
    """
    try:
        return len(make_plan(asked, memory=memory, rows="memory").groups) == 1
    except PlanError:
        return False


# What is compared with the exact inverse


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


def moment_bytes(layers: Iterable[tuple[int, int, bool]]) -> int:
    """Bytes that the second moments of layers take.

    Args:
        layers: outputs and inputs of each, and whether it has a bias.

    Returns:
        All of them together and one that is being added, in float64; or the moments of the largest
        layer, as read and as they are, their eigenvectors and what those are computed with.
    """
    sizes = [8 * (o**2 + i**2) for o, i, _ in layers]
    return max(2 * sum(sizes), 5 * max(sizes)) if sizes else 0


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


# Small print

_SIDES = ("test", "train")


def _checked_tile(size: int | None, side: str) -> int | None:
    if size is not None and (type(size) is not int or size < 1):
        raise PlanError(
            f"The {side} side of a tile must be a positive number or None, got {size!r}."
        )
    return size


def _train_tile(asked: RunSize, memory: int, step: int) -> int:
    """About 1/32 of the samples: what a stop loses at most; whole pieces, and rows that fit."""
    wanted = min(max(ceil(asked.n / 32), 16 * (asked.top_k or 0)), MOST_TRAIN)
    fitting = max(1, memory // (8 * asked.each * asked.row))
    return max(1, min(ceil(wanted / step) * step, fitting // step * step or fitting))


def _even(total: int, most: int) -> int:
    """The length of parts, at most `most`, that are as even as can be: a short one is padded."""
    return ceil(total / ceil(total / most))


def _cut(asked: RunSize, held: int) -> list[tuple[int, int]]:
    """Pieces of neighbouring blocks whose stored rows can be held, if those of a block can."""
    D, most = sum(asked.widths), held // (2 * asked.rows)
    # Several, if the parts of scores that they leave on disk take little beside the rows there.
    few = max(1, min(MOST_PIECES, D // (4 * PART * asked.m)))
    limit = max(1, min(most, ceil(D / few)))
    found: list[tuple[int, int]] = []
    for width in asked.widths:
        if found and found[-1][1] + width <= limit:
            found[-1] = found[-1][0] + 1, found[-1][1] + width
        else:
            found.append((1, width))
    return found


def _chunk(asked: RunSize, train_tile: int, held: int) -> int:
    """Rows of the widest block that are decoded at once, and multiplied."""
    return max(1, min(train_tile, MOST_CHUNK, held // (8 * max(asked.widths) * asked.precision)))


class _Needs(NamedTuple):
    """Bytes: beside queries, for each query, and while a tile of rows is made."""

    fixed: int
    query: int
    tile: int


def _needs(
    asked: RunSize,
    rows: str,
    pieces: Sequence[Sequence[int]],
    test_tile: int,
    train_tile: int,
    step: int,
    held: int,
) -> _Needs:
    p, D, d = asked.precision, sum(asked.widths), max(asked.widths)
    # Rows of a gradient computation, as computed, and one block of them as it is multiplied.
    at_once = asked.each * step
    computed = at_once * (max(3 * asked.gradient, 2 * asked.vector) + d * p) + asked.basis_bytes
    # Gradients of a tile of queries in all blocks, or sums over groups of test samples.
    queries = asked.m * asked.vector if asked.m < asked.m_samples else test_tile * asked.row
    n = asked.each * asked.n  # rows of the inverse
    solver = asked.method.bytes(n, 0, d)
    query = asked.method.bytes(n, 1, d) - solver + d * p
    tile = 2 * train_tile * (len(asked.widths) if asked.by_block else 1) * p  # of scores
    if rows == "recompute":  # all blocks at once
        return _Needs(computed + solver, query + tile + 2 * (asked.vector + at_once * p), queries)
    score = asked.n * p + 2 * train_tile * p
    if rows == "memory":  # as they were computed
        fixed = computed + asked.rows * asked.row + solver
        return _Needs(fixed, query + score + asked.vector + 2 * at_once * p, fixed + queries)
    widest, chunk = max(width for _, width in pieces), _chunk(asked, train_tile, held)
    whole = 2 * asked.rows * widest
    chunk_bytes = 2 * asked.each * train_tile * widest
    # Once, while some chunks are on their way; or tile by tile, of which one is being read, beside
    # the memory of other pieces.
    sizes = (2 * asked.rows * width for _, width in pieces)
    at_once = max((size for size in sizes if size <= held), default=0)
    transit = (CHUNKS_IN_TRANSIT if whole <= held else 2) * chunk_bytes
    read = min(at_once + transit, 2 * whole)
    in_float64 = [8 * asked.rows * width for width in asked.widths]
    decoded = max((size for size in in_float64 if size <= held // DECODED_SHARE), default=0)
    fixed = read + decoded + 3 * chunk * d * p + solver
    if asked.bases:  # what rows have outside of these, and rows as they are weighed
        fixed += 8 * asked.n * max(blocks for blocks, _ in pieces) + chunk * d * p
    # A tile in half precision, and one that is being written.
    encoded = 6 * asked.each * train_tile * D
    each = query + score + (widest + 2 * chunk) * p
    return _Needs(fixed, each, max(computed + max(encoded, queries), asked.learning))


def _self_bytes(asked: RunSize, step: int) -> int:
    """Row of a sample whose self-influence is computed, and what is made for it."""
    # What the inverse adds up for it, and products with the rows of a step.
    return 3 * asked.vector // 2 + 2 * asked.each * step * asked.precision


def _too_few(
    asked: RunSize, memory: int, rows: str, tile: Sequence[int | None], smallest: int
) -> str:
    """What to say of it."""
    own = asked.method.bytes(asked.n, tile[0] or 1, max(asked.widths))
    return (
        f"{memory:,} bytes of memory are too few: a gradient takes {asked.gradient:,}, and with "
        f"rows={rows!r} the smallest that works is memory={smallest:,}"
        + (f", for tiles of {tuple(tile)}." if any(tile) else ".")
        + (_MOMENTS.format(asked.moments) if asked.moments > smallest // 4 else "")
        + (_OWN.format(own, asked.method.name) if own > smallest // 4 else "")
    )


_MOMENTS = " Of these the second moments of layers take {0:,}."
_OWN = " Of these the {1} inverse takes {0:,} in the widest block."
