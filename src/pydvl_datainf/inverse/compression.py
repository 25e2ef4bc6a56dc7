"""How rows are compressed: settings and sizes, which take no torch to read.

What is done with them is in `inverse.coordinates`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pydvl_datainf.errors import SourceError

Rank = int | Literal["auto"]

RANK = 256
"""The rank where none is given, and the largest that is chosen."""

SHARE = 0.95
"""Of the energy of the rows that a basis is learned from: what one of chosen rank holds.

The least share that kept the retraining score of whole rows, see benchmarks/chosen_ranks.py.
"""

CHECKED = 64
"""Training samples whose influences tell what compression changes."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How rows are compressed.

    Args:
        rank: r, directions in the basis of a block; blocks of no more parameters are kept whole.
            "auto" = chosen for each block, `RANK` at most.
        basis_sample: b, training samples whose rows the bases are learned from, or all there are;
            None = 2 r, since the last of as many directions as samples are noise.
        basis_seed: of their choice.
        ranks: what was chosen with "auto", block by block; None = nothing yet.
        sides: the share of its outputs, and of its inputs, that side bases of a linear layer keep
            (see `inverse.sides`); None = there are none.
        layers: that get side bases: outputs o, inputs i and whether the last of these is that of a
            bias, by block, where the model is known.

    Raises:
        SourceError: if a number is out of range.
    """

    rank: Rank = RANK
    basis_sample: int | None = None
    basis_seed: int = 0
    ranks: tuple[int, ...] | None = None
    sides: float | None = None
    layers: Mapping[str, tuple[int, int, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        others = {"rank": ("auto",), "basis_sample": (None,), "basis_seed": ()}
        for name, least in (("rank", 1), ("basis_sample", 1), ("basis_seed", 0)):
            value = getattr(self, name)
            if (type(value) is not int or value < least) and value not in others[name]:
                told = ' or "auto"' if name == "rank" else ""
                raise SourceError(
                    f"{name} must be an integer of at least {least}{told}, got {value!r}."
                )
        if self.sides is None:
            return
        if not isinstance(self.sides, float) or not 0 < self.sides < 1:
            raise SourceError(f"sides must be a number between 0 and 1, got {self.sides!r}.")
        if self.rank == "auto":
            raise SourceError(
                'rank="auto" looks at the energy of whole rows, which side bases do without. Give '
                "a number, or leave out sides."
            )

    @property
    def is_open(self) -> bool:
        """Whether ranks are to be chosen and are not yet."""
        return self.rank == "auto" and self.ranks is None

    @property
    def largest(self) -> int:
        """The largest rank of all."""
        return RANK if self.rank == "auto" else self.rank

    @property
    def asked(self) -> dict[str, Any]:
        """What a caller asks for it."""
        names = ("rank", "basis_sample", "basis_seed", "sides")
        return {name: getattr(self, name) for name in names}

    def side_widths(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """How many outputs and inputs side bases of linear layers keep.

        Args:
            shapes: outputs o and inputs i of blocks.

        Returns:
            a and b of those blocks of which at least as many numbers as the rank are left.
        """
        share = self.sides or 1.0
        kept = {block: (ceil(share * o), ceil(share * i)) for block, (o, i) in shapes.items()}
        return {block: (a, b) for block, (a, b) in kept.items() if a * b >= self.largest}

    def of_layers(self, layers: Mapping[str, tuple[int, int, bool]]) -> "Compression":
        """With those that get side bases of the linear layers of a model.

        Args:
            layers: outputs, inputs and whether there is a bias, by block.

        Returns:
            It, where there are no sides.
        """
        if self.sides is None:
            return self
        wanted = self.side_widths({block: (o, i) for block, (o, i, _) in layers.items()})
        return replace(self, layers={block: layers[block] for block in wanted})

    @property
    def kept_of_sides(self) -> dict[str, tuple[int, int]]:
        """How many outputs and inputs are kept of the layers that get side bases, a and b."""
        return self.side_widths({block: (o, i) for block, (o, i, _) in self.layers.items()})

    def small_widths(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Numbers of each block in a row that a basis is learned from: d_l, or a b."""
        small = {block: a * b for block, (a, b) in self.kept_of_sides.items()}
        return {block: small.get(block, d) for block, d in widths.items()}

    def side_shapes(self, blocks: Iterable[str]) -> dict[int, tuple[int, int, int, int]]:
        """o, a, i and b of the blocks that have side bases, by their number."""
        kept = self.kept_of_sides
        return {
            b: (self.layers[block][0], kept[block][0], self.layers[block][1], kept[block][1])
            for b, block in enumerate(blocks)
            if block in kept
        }

    def opened(self) -> "Compression":
        """As it was before ranks were chosen; what it says of sizes then bounds them."""
        return replace(self, ranks=None)

    def with_ranks(self, ranks: Sequence[int]) -> "Compression":
        """With what was chosen for each block."""
        return replace(self, ranks=tuple(ranks))

    def sample_size(self, n: int) -> int:
        """How many of n training samples the bases are learned from."""
        return min(n, self.basis_sample or 2 * self.largest)

    def positions(self, n: int) -> npt.NDArray[np.int64]:
        """Which of n training samples those are, in ascending order."""
        return np.sort(self._order(n)[: self.sample_size(n)])

    def checked(self, n: int) -> npt.NDArray[np.int64]:
        """Over which of n training samples whole and compressed rows are compared.

        They are none of those that the bases are learned from, as far as there are others.

        Args:
            n: training samples.

        Returns:
            Positions, in ascending order.
        """
        return np.sort(self._order(n)[-CHECKED:])

    def kept_whole(self, n: int) -> npt.NDArray[np.int64]:
        """Positions of both, in ascending order: their rows are kept until they are projected."""
        return np.union1d(self.positions(n), self.checked(n))

    def _order(self, n: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(self.basis_seed).permutation(n)

    def widths(self, widths: Mapping[str, int], n: int) -> dict[str, int]:
        """For blocks of d_l parameters how many numbers of a row are kept, at most while open."""
        if self.ranks is not None:
            return dict(zip(widths, self.ranks, strict=True))
        r = min(self.largest, self.sample_size(n))
        if self.is_open:
            return {block: min(d, r) for block, d in widths.items()}
        small = self.small_widths(widths)
        return {block: d if d <= self.largest else r for block, d in small.items()}

    def shapes(self, widths: Mapping[str, int], n: int) -> dict[int, tuple[int, int]]:
        """(r, d_l), or (r, a b), of the blocks that have a basis, by number; while open, of all."""
        kept = self.widths(widths, n)
        numbered = enumerate(self.small_widths(widths).items())
        return {
            b: (kept[block], d) for b, (block, d) in numbered if kept[block] < d or self.is_open
        }


def compression_of(
    rows: str,
    rank: Rank | None,
    basis_sample: int | None,
    basis_seed: int,
    sides: float | None = None,
) -> Compression | None:
    """How rows are compressed; None where they are not.

    Args:
        rows: what happens to them.
        rank: of the bases, or "auto"; None = `RANK`.
        basis_sample: samples that they are learned from; None = twice the rank.
        basis_seed: of the choice of these.
        sides: as in `Compression`.

    Returns:
        It, checked.

    Raises:
        SourceError: if a number is out of range, or rows that stay whole are given one.
    """
    if rows == "compressed":
        rank = RANK if rank is None else rank
        return Compression(rank, basis_sample, basis_seed, sides=sides)
    if (rank, basis_sample, basis_seed) != (None, None, 0):
        raise SourceError(
            "rank, basis_sample and basis_seed are those of compressed rows. Use "
            'rows="compressed", or leave them out.'
        )
    if sides is not None:
        raise SourceError(
            'sides are those of compressed rows. Use rows="compressed", or leave them out.'
        )
    return None
