"""The bytes of memory that work takes, from which `cutting.py` chooses tiles, pieces and groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from pydvl_datainf.inverse.method import Method
from pydvl_datainf.results.plan import Tiling

MOST_CHUNK = 512  # rows that are decoded at once
DECODED_SHARE = 4  # of what is held of a piece, what decoded rows of a block may take beside it
CHUNKS_IN_TRANSIT = 4  # of one reading: Zarr reads several side by side
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
        bases: shapes of the bases of compressed rows, (r, d_l), or (r, a b) behind side bases.
        basis_sample: training samples whose rows they are learned from and compared over.
        small: numbers of each block in such a row, where side bases make it small.
        sides: numbers in all side bases.
        side_moments: bytes that the moments take that side bases follow from, and their
            eigenvectors.
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
    small: Sequence[int] = ()
    sides: int = 0
    side_moments: int = 0
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
        return self.itemsize * (sum(sizes) + max(sizes, default=0) + 2 * self.sides)

    @property
    def learning(self) -> int:
        """Bytes while the basis of the widest block is learned, and compared with such rows.

        Rows of the sample, as read and in float64, their orthonormal factor and what that is
        computed with; the small factor's singular vectors; and the basis, before it is rounded. A
        solver over whole rows, and gradients of some queries in all blocks.
        """
        b, d = self.basis_sample, max((d for _, d in self.bases), default=0)
        r = max((r for r, _ in self.bases), default=0)
        queries = min(MOST_SAMPLED_QUERIES, self.m_samples)
        vectors = 2 * queries * sum(self.small or self.whole) * self.itemsize
        compared = self.method.bytes(b, queries, d) + vectors if b else 0
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


# Samples that are compared with the exact inverse, and moments of layers


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


# What the work takes


def rows_decoded(asked: RunSize, train_tile: int, held: int) -> int:
    """Rows of the widest block that are decoded at once, and multiplied."""
    return max(1, min(train_tile, MOST_CHUNK, held // (8 * max(asked.widths) * asked.precision)))


class Needs(NamedTuple):
    """Bytes: beside queries, for each query, and while a tile of rows is made."""

    fixed: int
    query: int
    tile: int


def needs_of(
    asked: RunSize,
    rows: str,
    pieces: Sequence[Sequence[int]],
    test_tile: int,
    train_tile: int,
    step: int,
    held: int,
) -> Needs:
    """What the work takes in one process.

    Args:
        asked: the size of what is asked.
        rows: "memory", "zarr" or "recompute".
        pieces: for each piece how many blocks it has, and how many numbers of a row.
        test_tile: queries in a tile.
        train_tile: training samples in a tile.
        step: samples in one gradient computation.
        held: bytes of the rows of a piece up to which they are read once.

    Returns:
        Bytes.
    """
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
        return Needs(computed + solver, query + tile + 2 * (asked.vector + at_once * p), queries)
    score = asked.n * p + 2 * train_tile * p
    if rows == "memory":  # as they were computed
        fixed = computed + asked.rows * asked.row + solver
        return Needs(fixed, query + score + asked.vector + 2 * at_once * p, fixed + queries)
    widest, chunk = max(width for _, width in pieces), rows_decoded(asked, train_tile, held)
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
    beside = max(encoded, queries, asked.side_moments)
    return Needs(fixed, each, max(computed + beside, asked.learning))


def self_bytes(asked: RunSize, step: int) -> int:
    """Row of a sample whose self-influence is computed, and what is made for it."""
    # What the inverse adds up for it, and products with the rows of a step.
    return 3 * asked.vector // 2 + 2 * asked.each * step * asked.precision
