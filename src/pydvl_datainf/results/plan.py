"""How a run is cut, in integers alone: tiles of samples, and pieces of neighbouring blocks.

The scores of m queries on n training samples are cut into tiles, and the D parameters into pieces
of whole blocks. A piece needs nothing of the others: its rows are read once, and give its part of
all scores; the parts are added in the order of the blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import ceil
from typing import Any

MOST_SAMPLED_TILES = 8  # from which samples are taken: each may have to be read whole


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
class Plan:
    """How a run is cut.

    Args:
        n: training samples.
        m: queries: test samples, or groups of them.
        n_parameters: D, the width of a row.
        pieces: for each piece how many neighbouring blocks it has, and how many parameters.
        test_tile: queries in a tile.
        train_tile: training samples in a tile.
        group_tiles: tiles of queries that are worked on together.
        span_tiles: training tiles whose rows enter the inverse together, where they are computed
            again for it.
        step: the largest number of samples in one gradient computation.
        chunk: stored rows that are decoded at once.
        held: bytes of the rows of a piece up to which they are read once, and not once for the
            inverse and once for the scores.
        columns: parameters in a chunk of vectors.
        part: test samples whose gradients are summed before they are stored, for groups of them.
        self_tiles: training tiles whose self-influences are computed together, where rows are
            computed again.
        rows: "memory", "zarr" or "recompute"; "none" of a sum of runs.
    """

    n: int
    m: int
    n_parameters: int
    pieces: Sequence[Sequence[int]]
    test_tile: int
    train_tile: int
    group_tiles: int
    span_tiles: int
    step: int
    chunk: int
    held: int
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

    def tiles_of(self, q: int) -> range:
        """The tiles of queries of a group."""
        tiles = self.groups[q]
        return range(tiles.start, tiles.stop)

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

    def narrowed(self, widths: Sequence[int]) -> "Plan":
        """The same for rows that have fewer numbers in some blocks.

        Args:
            widths: of all blocks, none more than before.

        Returns:
            The plan.
        """
        counts = [count for count, _ in self.pieces]
        stops = list(accumulate(counts))
        parts = [widths[stop - count : stop] for stop, count in zip(stops, counts, strict=True)]
        pieces = tuple((len(part), sum(part)) for part in parts)
        columns = min(self.columns, max(width for _, width in pieces))
        return replace(self, pieces=pieces, n_parameters=sum(widths), columns=columns)

    def as_attributes(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return asdict(self) | {"pieces": [list(piece) for piece in self.pieces]}

    @classmethod
    def from_attributes(cls, attributes: Any) -> "Plan":
        """The plan that was written so."""
        return cls(**attributes | {"pieces": tuple(map(tuple, attributes["pieces"]))})
