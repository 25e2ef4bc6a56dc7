"""What a run is, as every process that works on it is told."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.results.plan import Plan, Tiling
from pydvl_datainf.results.row_sets import RowSet, row_sets, rows_of_inverse
from pydvl_datainf.runner.batched_data import BatchIndex


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a run is.

    Args:
        plan: how it is cut.
        location: of its store.
        rows_location: of the store that holds the training rows, where they are in one.
        widths: numbers of each block in a row, in their order along it: d_l, or of coordinates.
        dtype: of rows and scores, by NumPy's name.
        method: of the inverse.
        test: what the first look at the test data found.
        train: the same of the training data; None where its rows are in another run's store.
        model: the checksums of the model that the run was described with.
        codes: for each test sample its group, where there are groups.
        by_block: whether each block has scores of its own.
        top_k: how many scores are kept at either end; None = all.
        writer: of the store, while it is this run's.
        rows_of: the fingerprint of the run whose rows are used, where it is another one.
        layers: for EK-FAC, of each block that is a linear layer its outputs, inputs, and whether it
            has both weight and bias.
        compression: how rows are compressed, if they are.
        whole: d_l of each block, where rows are compressed.
        curvature: rows of each training sample that only the inverse is made of; 0 = it is made of
            those that are scored.
        normalizes: whether scores are divided by the norms of training rows.
    """

    plan: Plan
    location: Any
    rows_location: Any
    widths: Mapping[str, int]
    dtype: str
    method: Method
    test: BatchIndex
    train: BatchIndex | None = None
    model: Mapping[str, int] | None = None
    codes: tuple[int, ...] | None = None
    by_block: bool = False
    top_k: int | None = None
    writer: str | None = None
    rows_of: Any = None
    layers: Mapping[str, tuple[int, int, bool]] = field(default_factory=dict)
    compression: Compression | None = None
    whole: Mapping[str, int] = field(default_factory=dict)
    curvature: int = 0
    normalizes: bool = False

    @property
    def parameters(self) -> Mapping[str, int]:
        """d_l of each block."""
        return self.widths if self.compression is None else self.whole

    @property
    def is_open(self) -> bool:
        """Whether ranks of compressed rows are to be chosen before rows can be stored."""
        return self.compression is not None and self.compression.is_open

    @property
    def basis_shapes(self) -> dict[int, tuple[int, int]]:
        """(r, d_l), or (r, a b), of the blocks that have a basis, by their number among all."""
        if self.compression is None:
            return {}
        return self.compression.shapes(self.whole, self.plan.n)

    @property
    def sampled_widths(self) -> dict[str, int]:
        """Numbers of each block in a row of the sample that bases are learned from.

        Behind side bases a row has its norm at the end.
        """
        compression = self.compression
        assert compression is not None  # otherwise there is no sample
        small, sides = compression.small_widths(self.whole), compression.layers
        return {block: width + (block in sides) for block, width in small.items()}

    @property
    def side_blocks(self) -> Container[str]:
        """The blocks that have side bases."""
        return () if self.compression is None else self.compression.layers

    @property
    def side_shapes(self) -> dict[int, tuple[int, int, int, int]]:
        """o, a, i and b of the blocks that have side bases, by their number among all."""
        return {} if self.compression is None else self.compression.side_shapes(self.whole)

    @property
    def precision(self) -> str:
        """The dtype of what the inverse makes of vectors, by NumPy's name."""
        return self.method.precision(self.dtype)

    @property
    def row_sets(self) -> tuple[RowSet, ...]:
        """All rows that there are."""
        return row_sets(self.curvature)

    @property
    def inverse_rows(self) -> RowSet:
        """Those that the inverse is made of."""
        return rows_of_inverse(self.curvature)

    @property
    def n_inverse(self) -> int:
        """How many these are."""
        return self.plan.n * self.inverse_rows.each

    @property
    def n_rows(self) -> int:
        """How many rows there are in all sets."""
        return sum(self.plan.n * rows.each for rows in self.row_sets)

    @property
    def vector_dtype(self) -> str:
        """The dtype in which the gradients of queries wait, by NumPy's name: sums are wider."""
        return self.dtype if self.codes is None else self.precision

    @property
    def parts(self) -> Tiling:
        """The test samples, cut into parts, each of which adds to its groups by itself."""
        return Tiling(self.test.n, self.plan.part)

    @property
    def adds_parts(self) -> bool:
        """Whether scores are sums of what each piece of blocks leaves in the store."""
        return len(self.plan.pieces) > 1 and not self.by_block

    def piece(self, p: int) -> dict[str, int]:
        """The blocks of a piece, with their widths."""
        return {name: self.widths[name] for name in list(self.widths)[self.blocks(p)]}

    def blocks(self, p: int) -> slice:
        """Where the blocks of a piece are among all of them."""
        start = sum(count for count, _ in self.plan.pieces[:p])
        return slice(start, start + self.plan.pieces[p][0])

    def columns(self, p: int) -> slice:
        """Where a piece is along a flat row."""
        start = sum(width for _, width in self.plan.pieces[:p])
        return slice(start, start + self.plan.pieces[p][1])

    def columns_in(self, p: int, block: str) -> slice:
        """Where a block is along the rows of its piece."""
        stops = [0]
        for width in self.piece(p).values():
            stops.append(stops[-1] + width)
        b = list(self.piece(p)).index(block)
        return slice(*list(pairwise(stops))[b])
