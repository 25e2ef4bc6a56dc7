"""The directions in which rows have most of their energy."""

import torch
from jaxtyping import Float
from torch import Tensor

CLEAR = 1e-7
"""σ_k²/σ_1² above which float64 products of rows give directions orthonormal to 1e-8."""


def leading_directions(S: Float[Tensor, "b d"], r: int) -> Float[Tensor, "k d"]:
    """The leading k = min(r, b, d) right singular vectors of S, as orthonormal rows.

    Of float32 rows as eigenvectors of products of rows, or of columns if these are fewer, in
    float64. Squares halve the digits that small singular values are told apart by, which leaves
    more than such rows have. Of float64 rows, and where the k-th singular value is too small beside
    the first, by a QR factor of the longer side and the singular vectors of the smaller rest. Where
    S has fewer directions than k, the last are any that make the rows orthonormal.

    Args:
        S: rows.
        r: how many directions, at most.

    Returns:
        They, in the dtype of S.
    """
    k, X = min(r, *S.shape), S.double()
    B = None if S.dtype == torch.float64 else _from_products(X, k)
    if B is None:
        B = _from_factors(X, k)
    return B.to(S.dtype).contiguous()


def _from_products(S: Tensor, k: int) -> Tensor | None:
    """Leading directions; None where division by the k-th σ would leave them less orthonormal."""
    b, d = S.shape
    squares, vectors = torch.linalg.eigh(S @ S.mT if b <= d else S.mT @ S)  # in ascending order
    squares, leading = squares[-k:].flip(0), vectors[:, -k:].mT.flip(0)
    if b <= d:
        is_clear = squares[-1] > CLEAR * squares[0]
        return torch.div(leading @ S, squares.sqrt()[:, None]) if is_clear else None
    B: Tensor = leading
    return B


def _from_factors(S: Tensor, k: int) -> Tensor:
    b, d = S.shape
    if b <= d:
        Q, R = torch.linalg.qr(S.mT)  # S = Rᵀ Qᵀ
        B: Tensor = (Q @ torch.linalg.svd(R)[0][:, :k]).mT
    else:
        R = torch.linalg.qr(S, mode="r")[1]  # has the right singular vectors of S
        B = torch.linalg.svd(R)[2][:k]
    return B
