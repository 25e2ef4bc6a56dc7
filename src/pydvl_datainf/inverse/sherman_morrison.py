r"""DataInf: the mean of the inverses of rank-one matrices, in place of the inverse of their mean.

For one block, with the gradients g_i of the n training samples as rows of G (n, d) and damping λ,

    (1/n) Σ_i (g_i g_iᵀ + λ I)⁻¹ v  =  (1/λ) ( v − (1/n) Gᵀ ( w ⊙ (G v) ) ),   w_i = 1/(λ + ‖g_i‖²)

by Sherman and Morrison. The correction Gᵀ(w ⊙ (G v)) is a sum over training samples, so it is
computed chunk by chunk, and chunks may be added in any grouping.

Where rows are nearly parallel (n = 1, copies of a sample), the difference cancels to about λ/‖g‖²
of v, which under automatic damping is 1/(10 d): to nothing in float32. So all of this is float64,
whatever the dtype of the rows, and so are the results: their products with rows cancel again where
v has a part that is orthogonal to the rows.
Source: Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024, equation 5.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.vectors import BlockVectors, widened


def weights(G: Float[Tensor, "b d"], λ: float) -> Float[Tensor, " b"]:
    """w_i = 1/(λ + ‖g_i‖²)."""
    return 1 / (λ + squared_norms(G))


def add_correction(
    summed: Float[Tensor, "m d"], G: Float[Tensor, "b d"], V: Float[Tensor, "m d"], λ: float
) -> None:
    """Adds the chunk's part of the correction, Gᵀ(w ⊙ (G v)), for each row v of V: a sum over i.

    In place: a sum of its own for each chunk takes as long to add as a small chunk to multiply.
    """
    G = G.double()
    summed.addmm_(V.double() @ G.mT * weights(G, λ), G)


def transformed(
    V: Float[Tensor, "m d"], summed: Float[Tensor, "m d"], n: int, λ: float
) -> Float[Tensor, "m d"]:
    """(v − c/n)/λ for each row v of V, with c its correction summed over all n training samples."""
    return torch.sub(V.double(), summed, alpha=1 / n).div_(λ)


def quadratic_correction(
    G: Float[Tensor, "b d"], V: Float[Tensor, "m d"], λ: float
) -> Float[Tensor, " m"]:
    """The chunk's part of vᵀ Gᵀ(w ⊙ (G v)) = Σ_i w_i (g_i·v)², for each row v of V."""
    return (V.double() @ G.double().mT).square() @ weights(G, λ)


def quadratic_form(
    V: Float[Tensor, "m d"], summed: Float[Tensor, " m"], n: int, λ: float
) -> Float[Tensor, " m"]:
    """vᵀ (inverse) v = (‖v‖² − q/n)/λ, with q the quadratic correction over all n samples."""
    return (squared_norms(V) - summed / n) / λ


def inverse_times(
    vectors: BlockVectors, chunks: Iterable[BlockVectors], n: int, damping: Mapping[str, float]
) -> BlockVectors:
    """The inverse of each block times each of its vectors, in one pass over the training rows.

    Args:
        vectors: for each block vectors v as rows, (m, d_l).
        chunks: the rows of all n training samples in pieces; may hold further blocks.
        n: the number of training samples.
        damping: λ of each block.

    Returns:
        For each block of `vectors` the transformed vectors, (m, d_l), in float64.
    """
    vectors = widened(vectors)
    summed = {block: torch.zeros_like(V) for block, V in vectors.items()}
    for rows in chunks:
        for block, V in vectors.items():
            add_correction(summed[block], rows[block], V, damping[block])
    return OrderedDict(
        (block, transformed(V, summed[block], n, damping[block])) for block, V in vectors.items()
    )


def inverse_forms(
    vectors: BlockVectors, chunks: Iterable[BlockVectors], n: int, damping: Mapping[str, float]
) -> BlockVectors:
    """vᵀ (inverse) v for each block and vector, in one pass over the training rows.

    Args:
        vectors: for each block vectors v as rows, (m, d_l).
        chunks: the rows of all n training samples in pieces; may hold further blocks.
        n: the number of training samples.
        damping: λ of each block.

    Returns:
        For each block of `vectors` one number per vector, (m,), in float64.
    """
    vectors = widened(vectors)
    summed = {block: V.new_zeros(V.shape[0]) for block, V in vectors.items()}
    for rows in chunks:
        for block, V in vectors.items():
            summed[block] += quadratic_correction(rows[block], V, damping[block])
    return OrderedDict(
        (block, quadratic_form(V, summed[block], n, damping[block])) for block, V in vectors.items()
    )
