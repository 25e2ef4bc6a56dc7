r"""Rows as coordinates in a basis that was learned from a part of them.

For one block, with the gradients of some training samples as rows of S (b, d), the basis B (r, d)
holds as orthonormal rows the r directions in which S has most of its energy: its leading right
singular vectors. A row g is kept as its coordinates c = B g, beside s = ‖g‖² − ‖c‖², what it has
outside of the basis. With Ĝ the rows Bᵀ c, the mean of ĝ ĝᵀ is Bᵀ Ĥ B with Ĥ = (1/n) Cᵀ C, so that

    (Bᵀ Ĥ B + λ I)⁻¹ v  =  Bᵀ (Ĥ + λ I)⁻¹ B v  +  (v − Bᵀ B v)/λ

What v has outside of the basis is orthogonal to every ĝ and drops out of all influences on
training samples. So a method works on coordinates as on rows of r numbers, with two exceptions:
λ is that of the whole rows, and DataInf's weights are of their norms (`Method.weighed`).

A block of no more than r parameters is kept whole. The rank r is given, or chosen for each block:
the least whose directions hold a share of the energy of S (`SHARE`).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.errors import SourceError
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.directions import leading_directions
from pydvl_datainf.vectors import BlockVectors, length

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

    Raises:
        SourceError: if a number is out of range.
    """

    rank: Rank = RANK
    basis_sample: int | None = None
    basis_seed: int = 0
    ranks: tuple[int, ...] | None = None
    sides: float | None = None

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
        return {name: getattr(self, name) for name in ("rank", "basis_sample", "basis_seed")}

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
        return {block: d if d <= self.largest else r for block, d in widths.items()}

    def shapes(self, widths: Mapping[str, int], n: int) -> dict[int, tuple[int, int]]:
        """(r, d_l) of the blocks that have a basis, by their number; while open, of all."""
        kept = self.widths(widths, n)
        numbered = enumerate(widths.items())
        return {
            b: (kept[block], d) for b, (block, d) in numbered if kept[block] < d or self.is_open
        }

    def learned(self, S: BlockVectors) -> "Compression":
        """With ranks, if they are to be chosen.

        Args:
            S: for each block rows of the sample, (b, d_l).

        Returns:
            It, where nothing is to be chosen.
        """
        if not self.is_open:
            return self
        return self.with_ranks([least_rank(G, self.largest) for G in S.values()])

    def bases(self, S: BlockVectors) -> BlockVectors:
        """The bases, (r, d_l), of those blocks that are not kept whole.

        Args:
            S: for each block rows of the sample, (b, d_l).

        Returns:
            In the dtype of the rows.
        """
        kept = self.widths({block: G.shape[1] for block, G in S.items()}, length(S))
        wide = ((block, G, kept[block]) for block, G in S.items() if kept[block] < G.shape[1])
        return OrderedDict((block, leading_directions(G, r)) for block, G, r in wide)


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


def least_rank(S: Float[Tensor, "b d"], most: int) -> int:
    """The least r whose leading directions hold `SHARE` of Σ‖g‖² over the rows of S.

    Args:
        S: rows.
        most: no more than this.

    Returns:
        r, at least 1 and at most min(b, d).
    """
    b, d = S.shape
    longer = S.double().mT if b <= d else S.double()
    R = torch.linalg.qr(longer, mode="r")[1]
    energy = torch.linalg.svdvals(R).square().cumsum(0)
    return min(most, 1 + int((energy < SHARE * energy[-1]).sum()))


def projected(
    vectors: Mapping[str, Tensor],
    bases: Mapping[str, Tensor],
    within: torch.dtype | None = None,
) -> BlockVectors:
    """Coordinates B v of vectors; those of blocks without a basis as they are.

    Sums of d float32 products are wrong by about 1e-7 ‖v‖, which is much beside a small coordinate,
    and the exact inverse multiplies small ones most; that bases are rounded matters far less.

    Args:
        vectors: for each block vectors as rows, (m, d_l).
        bases: for some blocks B, (r, d_l).
        within: the dtype in which coordinates are computed; None = that of the vectors.

    Returns:
        (m, r) in the dtype of the vectors, or (m, d_l).
    """

    def coordinates(v: Tensor, B: Tensor) -> Tensor:
        dtype = within or v.dtype
        return (v.to(dtype) @ B.to(dtype).mT).to(v.dtype)

    return OrderedDict(
        (block, coordinates(v, bases[block]) if block in bases else v)
        for block, v in vectors.items()
    )


def lifted(coordinates: Mapping[str, Tensor], bases: Mapping[str, Tensor]) -> BlockVectors:
    """The vectors Bᵀ c that have these coordinates.

    Args:
        coordinates: for each block as rows, (m, r).
        bases: for some blocks B, (r, d_l).

    Returns:
        (m, d_l) in the dtype of the coordinates.
    """
    return OrderedDict(
        (block, c @ bases[block].to(c.dtype) if block in bases else c)
        for block, c in coordinates.items()
    )


def remainders(squares: Mapping[str, Tensor], coordinates: Mapping[str, Tensor]) -> BlockVectors:
    """What rows have outside of the bases, not negative by rounding.

    Args:
        squares: for each block ‖g‖² of the whole rows, (b,), in float64.
        coordinates: c of the same rows.

    Returns:
        ‖g‖² − ‖c‖² of each, (b,), in float64.
    """
    return OrderedDict(
        (block, (squares[block] - squared_norms(c)).clamp_min(0.0))
        for block, c in coordinates.items()
    )
