r"""The damped Gauss-Newton block, solved exactly.

For one block, with the gradients g_i of the n training samples as rows of G (n, d) and damping λ,

    (H + λ I)⁻¹ v,   H = (1/n) Gᵀ G

by a Cholesky factor in whichever space is smaller: that of the parameters, d x d, in which Gᵀ G is
added up chunk by chunk, or by Woodbury's identity that of the samples, n x n, which needs all rows,

    (H + λ I)⁻¹ v  =  n (Gᵀ G + n λ I)⁻¹ v  =  (1/λ) ( v − Gᵀ (K + n λ I)⁻¹ G v ),   K = G Gᵀ

Everything is float64, results too: the difference in sample space cancels where λ is small, and
products of what it leaves with rows cancel again. It takes n d min(n, d) + min(n, d)³/3
multiplications.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.method import Method, OnePass, float64_bytes

NEGLIGIBLE = 2**10 * torch.finfo(torch.float64).eps
"""What is added to a diagonal, as a share of its largest entry, below which it counts as lost."""


@dataclass(frozen=True)
class Exact(Method):
    """The exact inverse, one pass over the rows, by one solver that is fed all of them."""

    name = "exact"
    formula = "(mean over training samples of g gᵀ + λ I)⁻¹, block by block"
    is_damped = True
    passes = 1
    joins = False
    is_approximate = False

    def times(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "InParameters | InSamples":
        """(H + λ I)⁻¹ v for each row v of V."""
        return InParameters(V, λ, n) if V.shape[1] <= n else InSamples(V, λ, n)

    def forms(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "InParameters | InSamples":
        """vᵀ (H + λ I)⁻¹ v for each row v of V."""
        is_narrow = V.shape[1] <= n
        return InParameters(V, λ, n, forms=True) if is_narrow else InSamples(V, λ, n, forms=True)

    def bytes(self, n: int, m: int, d: int) -> int:
        """V, the matrix, its factor and products; in sample space rows as fed and in float64."""
        k = min(n, d)
        rows = ((n, d), (n, d)) if d > n else ()
        return float64_bytes((m, d), (k, k), (k, k), (k, m), (k, m), *rows)

    def flops(self, n: int, m: int, d: int) -> float:
        """The matrix, its factor, and solving with it."""
        k = min(n, d)
        return 2 * n * d * k + k**3 / 3 + 2 * m * k * (k if d <= n else k + 2 * d)

    @property
    def refused(self) -> Mapping[str, str]:
        """Rows that are computed again."""
        return {
            "recompute": (
                "The exact inverse needs the gradients of all samples together, so they cannot be "
                'computed again piece by piece. Use rows="memory", or run_influences with '
                'rows="zarr".'
            )
        }


class InParameters(OnePass):
    """Gᵀ G, and n (Gᵀ G + n λ I)⁻¹ v or its product with v."""

    is_shared = True

    def __init__(self, V: Float[Tensor, "m d"], λ: float, n: int, *, forms: bool = False):
        super().__init__(V, λ, n)
        self.forms = forms
        self.sums = self.V.new_zeros(V.shape[1], V.shape[1])

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Adds the chunk's part of Gᵀ G."""
        G = G.double()
        self.sums.addmm_(G.mT, G)

    def result(self) -> Tensor:
        """Computes n (Gᵀ G + n λ I)⁻¹ v, or n ‖L⁻¹ v‖² with L the factor."""
        L = _factor(self.sums, self.n * self.λ)
        if self.forms:
            half = torch.linalg.solve_triangular(L, self.V.mT, upper=False)
            return self.n * squared_norms(half.mT)
        solved: Tensor = torch.cholesky_solve(self.V.mT, L)
        return solved.mul_(self.n).mT


class InSamples(OnePass):
    """The rows of all n samples, and (v − Gᵀ (K + n λ I)⁻¹ G v)/λ or its product with v."""

    sums: Tensor  # not there: rows are held
    is_shared = True

    def __init__(self, V: Float[Tensor, "m d"], λ: float, n: int, *, forms: bool = False):
        super().__init__(V, λ, n)
        self.forms = forms
        self.held: list[Tensor] = []

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Holds the chunk, as it is."""
        self.held.append(G)

    def end_pass(self) -> None:
        """Computes K, which serves any λ."""
        super().end_pass()
        (G,) = self.held = [self._rows()]
        self.K = G @ G.mT

    def result(self) -> Tensor:
        """(v − Gᵀ u)/λ with u = (K + n λ I)⁻¹ G v, or (‖v‖² − ‖L⁻¹ G v‖²)/λ with L the factor."""
        (G,) = self.held
        L, GV = _factor(self.K, self.n * self.λ), G @ self.V.mT
        if self.forms:
            half = torch.linalg.solve_triangular(L, GV, upper=False)
            return (squared_norms(self.V) - squared_norms(half.mT)) / self.λ
        u = torch.cholesky_solve(GV, L)
        return torch.addmm(self.V, u.mT, G, alpha=-1).div_(self.λ)  # without copies

    def _rows(self) -> Float[Tensor, "n d"]:
        assert sum(map(len, self.held)) == self.n  # sources count their samples
        if len(self.held) == 1:
            return self.held[0].double()
        return torch.cat(self.held, out=self.V.new_empty(self.n, self.V.shape[1]))


def _factor(matrix: Float[Tensor, "k k"], shift: float) -> Float[Tensor, "k k"]:
    """The Cholesky factor of the matrix plus `shift` on its diagonal."""
    diagonal = matrix.diagonal()
    before = diagonal.clone()
    # Rounding alone may make a singular matrix positive definite: a failure is no sufficient sign.
    is_lost = shift <= NEGLIGIBLE * before.max()
    diagonal.add_(shift)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal.copy_(before)
    if is_lost or failed.item() or not factor.isfinite().all():
        raise DampingError(
            "The damping is lost beside the gradients even in float64, so that a block cannot be "
            'solved. Use a larger λ; regularization="auto" suits the size of the gradients.'
        )
    return factor
