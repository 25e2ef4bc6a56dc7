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
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.inverse.compression import SHARE, Compression
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.directions import leading_directions
from pydvl_datainf.vectors import BlockVectors, length


def learn_ranks(compression: Compression, S: BlockVectors) -> Compression:
    """Chooses ranks, if they are to be chosen.

    Args:
        compression: how rows are compressed.
        S: for each block rows of the sample, (b, d_l).

    Returns:
        It with ranks; as it is, where nothing is to be chosen.
    """
    if not compression.is_open:
        return compression
    return compression.with_ranks([least_rank(G, compression.largest) for G in S.values()])


def learn_bases(compression: Compression, S: BlockVectors) -> BlockVectors:
    """Learns the bases, (r, d_l), of those blocks that are not kept whole.

    Args:
        compression: with ranks, if they were to be chosen.
        S: for each block rows of the sample, (b, d_l).

    Returns:
        In the dtype of the rows.
    """
    kept = compression.widths({block: G.shape[1] for block, G in S.items()}, length(S))
    wide = ((block, G, kept[block]) for block, G in S.items() if kept[block] < G.shape[1])
    return OrderedDict((block, leading_directions(G, r)) for block, G, r in wide)


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
