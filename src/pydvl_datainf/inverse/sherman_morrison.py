r"""DataInf: the mean of the inverses of rank-one matrices, in place of the inverse of their mean.

For one block, with the gradients g_i of the n training samples as rows of G (n, d) and damping λ,

    (1/n) Σ_i (g_i g_iᵀ + λ I)⁻¹ v  =  (1/λ) ( v − (1/n) Gᵀ ( w ⊙ (G v) ) ),   w_i = 1/(λ + ‖g_i‖²)

by Sherman and Morrison. The correction Gᵀ(w ⊙ (G v)) is a sum over training samples, so it is
computed chunk by chunk, and chunks may be added in any grouping.
Source: Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024, equation 5.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.vectors import BlockVectors


def weights(G: Float[Tensor, "b d"], λ: float) -> Float[Tensor, " b"]:
    """w_i = 1/(λ + ‖g_i‖²), computed in float64, returned in the dtype of G."""
    return (1 / (λ + squared_norms(G))).to(G.dtype)


def correction(G: Float[Tensor, "b d"], V: Float[Tensor, "m d"], λ: float) -> Float[Tensor, "m d"]:
    """The chunk's part of the correction, Gᵀ(w ⊙ (G v)), for each row v of V: a sum over i."""
    return (V @ G.mT * weights(G, λ)) @ G


def transformed(
    V: Float[Tensor, "m d"], summed: Float[Tensor, "m d"], n: int, λ: float
) -> Float[Tensor, "m d"]:
    """(v − c/n)/λ for each row v of V, with c its correction summed over all n training samples."""
    return (V - summed / n) / λ


def quadratic_correction(
    G: Float[Tensor, "b d"], V: Float[Tensor, "m d"], λ: float
) -> Float[Tensor, " m"]:
    """The chunk's part of vᵀ Gᵀ(w ⊙ (G v)) = Σ_i w_i (g_i·v)², for each row v of V."""
    return (V @ G.mT).square() @ weights(G, λ)


def quadratic_form(
    V: Float[Tensor, "m d"], summed: Float[Tensor, " m"], n: int, λ: float
) -> Float[Tensor, " m"]:
    """vᵀ (inverse) v = (‖v‖² − q/n)/λ, with q the quadratic correction over all n samples."""
    return (V.square().sum(1) - summed / n) / λ


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
        For each block of `vectors` the transformed vectors, (m, d_l).
    """
    summed = {block: V.new_zeros(V.shape) for block, V in vectors.items()}
    for rows in chunks:
        for block, V in vectors.items():
            summed[block] += correction(rows[block], V, damping[block])
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
        For each block of `vectors` one number per vector, (m,).
    """
    summed = {block: V.new_zeros(V.shape[0]) for block, V in vectors.items()}
    for rows in chunks:
        for block, V in vectors.items():
            summed[block] += quadratic_correction(rows[block], V, damping[block])
    return OrderedDict(
        (block, quadratic_form(V, summed[block], n, damping[block])) for block, V in vectors.items()
    )
