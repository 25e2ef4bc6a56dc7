r"""The damped Gauss-Newton block, solved exactly.

For one block, with the gradients g_i of the n training samples as rows of G (n, d) and damping λ,

    (H + λ I)⁻¹ v,   H = (1/n) Gᵀ G

by a Cholesky factor in whichever space is smaller: that of the parameters, d x d, or by Woodbury's
identity that of the samples, n x n,

    (H + λ I)⁻¹ v  =  (1/λ) ( v − Gᵀ (K + n λ I)⁻¹ G v ),   K = G Gᵀ

Everything is float64, results too: the difference in sample space cancels where λ is small, and
products of what it leaves with rows cancel again. A block needs
the gradients of all training samples together, and n d min(n, d) + min(n, d)³/3 multiplications.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.vectors import BlockVectors

NEGLIGIBLE = 2**10 * torch.finfo(torch.float64).eps
"""What is added to a diagonal, as a share of its largest entry, below which it counts as lost."""


def solved(G: Float[Tensor, "n d"], V: Float[Tensor, "m d"], λ: float) -> Float[Tensor, "m d"]:
    """(H + λ I)⁻¹ v for each row v of V, in float64; n, the number of rows of G, divides."""
    n, d = G.shape
    G64, V64 = G.double(), V.double()
    if d <= n:
        transformed: Tensor = torch.cholesky_solve(V64.mT, _parameter_factor(G64, λ)).mT
    else:
        weights = torch.cholesky_solve(G64 @ V64.mT, _sample_factor(G64, λ))
        transformed = torch.addmm(V64, weights.mT, G64, alpha=-1).div_(λ)  # without copies
    return transformed


def quadratic_form(
    G: Float[Tensor, "n d"], V: Float[Tensor, "m d"], λ: float
) -> Float[Tensor, " m"]:
    """vᵀ (H + λ I)⁻¹ v for each row v of V, in float64."""
    n, d = G.shape
    G64 = G.double()
    V64 = G64 if V is G else V.double()
    if d <= n:
        half = torch.linalg.solve_triangular(_parameter_factor(G64, λ), V64.mT, upper=False)
        forms: Tensor = _squared_norms(half)
    else:
        half = torch.linalg.solve_triangular(_sample_factor(G64, λ), G64 @ V64.mT, upper=False)
        forms = (_squared_norms(V64.mT) - _squared_norms(half)) / λ
    return forms


def inverse_times(
    vectors: BlockVectors, chunks: Iterable[BlockVectors], n: int, damping: Mapping[str, float]
) -> BlockVectors:
    """The inverse of each block times each of its vectors.

    Args:
        vectors: for each block vectors v as rows, (m, d_l).
        chunks: the rows of all n training samples in pieces, which are held together; may hold
            further blocks.
        n: the number of training samples.
        damping: λ of each block.

    Returns:
        For each block of `vectors` the transformed vectors, (m, d_l).
    """
    kept = list(chunks)
    return OrderedDict(
        (block, named(block, solved, _together(kept, block, n), V, damping[block]))
        for block, V in vectors.items()
    )


def inverse_forms(
    vectors: BlockVectors, chunks: Iterable[BlockVectors], n: int, damping: Mapping[str, float]
) -> BlockVectors:
    """vᵀ (inverse) v for each block and vector.

    Args:
        vectors: for each block vectors v as rows, (m, d_l).
        chunks: the rows of all n training samples in pieces, which are held together; may hold
            further blocks.
        n: the number of training samples.
        damping: λ of each block.

    Returns:
        For each block of `vectors` one number per vector, (m,).
    """
    kept = list(chunks)
    return OrderedDict(
        (block, named(block, quadratic_form, _together(kept, block, n), V, damping[block]))
        for block, V in vectors.items()
    )


def _squared_norms(columns: Float[Tensor, "k m"]) -> Float[Tensor, " m"]:
    norms: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return norms.square()


def named(block: str, solve: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`solve(*arguments)`, with the name of the block in what it raises."""
    try:
        return solve(*arguments)
    except DampingError as error:
        raise DampingError(f"Block '{block}': {error}") from error


def _together(chunks: list[BlockVectors], block: str, n: int) -> Tensor:
    G = torch.cat([rows[block] for rows in chunks])
    assert len(G) == n  # sources count their samples
    return G


def _parameter_factor(G: Float[Tensor, "n d"], λ: float) -> Float[Tensor, "d d"]:
    H = G.mT @ G / len(G)
    return _factor(H, λ)


def _sample_factor(G: Float[Tensor, "n d"], λ: float) -> Float[Tensor, "n n"]:
    K = G @ G.mT
    return _factor(K, len(G) * λ)


def _factor(matrix: Float[Tensor, "k k"], shift: float) -> Float[Tensor, "k k"]:
    """The Cholesky factor of the matrix, which is changed, plus `shift` on its diagonal."""
    # Rounding alone may make a singular matrix positive definite: a failure is no sufficient sign.
    is_lost = shift <= NEGLIGIBLE * matrix.diagonal().max()
    matrix.diagonal().add_(shift)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if is_lost or failed.item() or not factor.isfinite().all():
        raise DampingError(
            "The damping is lost beside the gradients even in float64, so that a block cannot be "
            'solved. Use a larger λ; regularization="auto" suits the size of the gradients.'
        )
    return factor
