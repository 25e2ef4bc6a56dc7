r"""LiSSA: the damped Gauss-Newton block, solved by iteration.

For one block, with the gradients g_i of the n training samples as rows of G (n, d), damping λ and
H = (1/n) Gᵀ G, each pass over the rows makes one step of

    r ← v + (I − (H + λ I)/s) r,   from r = 0;   the answer is x = r/s

which is Richardson's iteration: what is missing shrinks by 1 − μ/s in the direction of each
eigenvalue μ of H + λ I, as long as s > μ/2. So s is at least the largest of them: λ plus the
smaller of tr H, which always suffices, and 1.1 times what power iterations from a fixed start find.
Both v and λ are as in the exact inverse; the published number of steps, 10, and s = 1 are not kept.

The step of a pass is at the same time what its r leaves, v − (H + λ I) x, so that the residual
‖(H + λ I) x − v‖/‖v‖ of every answer is known. A vector whose residual is small enough is left as
it is, so that no answer depends on what else is solved beside it. All of this is float64.
Source: Agarwal, Bullins, Hazan, "Second-Order Stochastic Optimization for Machine Learning in
Linear Time", JMLR 2017; as a baseline in Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.iteration import Iteration
from pydvl_datainf.inverse.method import Method, Solver, float64_bytes

POWERS = 20
"""Power iterations, each of which takes a pass."""

MARGIN = 1.1
"""By which s is larger than what they find, which is the largest eigenvalue at most."""


@dataclass(frozen=True)
class Lissa(Method):
    """LiSSA's inverse, by one solver that is fed all rows in each of many passes.

    Args:
        iterations: the most steps, of a pass each.
        tolerance: the residual ‖(H + λ I) x − v‖/‖v‖ at which a vector is solved.

    Raises:
        ModelError: if a setting is out of range.
    """

    iterations: int = 100
    tolerance: float = 1e-2

    name = "LiSSA"
    is_damped = True
    joins = False
    is_iterated = True

    def __post_init__(self) -> None:
        Iteration(self.iterations, self.tolerance)  # which checks them

    @property
    def formula(self) -> str:
        """With its settings."""
        return (
            "r/s from r = v + (I − (mean over training samples of g gᵀ + λ I)/s) r, "
            f"{self.iterations} times or to a residual of {self.tolerance:g}, block by block"
        )

    @property
    def settings(self) -> Mapping[str, int | float]:
        """Both."""
        return {"iterations": self.iterations, "tolerance": float(self.tolerance)}

    @property
    def passes(self) -> int:
        """At most: fewer where all vectors are solved."""
        return POWERS + self.iterations

    def times(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Iterated":
        """About (H + λ I)⁻¹ v for each row v of V."""
        return Iterated(V, λ, n, self)

    def forms(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Iterated":
        """About vᵀ (H + λ I)⁻¹ v for each row v of V; not negative."""
        return Iterated(V, λ, n, self, forms=True)

    def bytes(self, n: int, m: int, d: int) -> int:
        """V, r, the sums and the answers, and one of them while solved vectors are taken out."""
        return float64_bytes(*[(m, d)] * 5, (m, 3), (2, d))

    def flops(self, n: int, m: int, d: int) -> float:
        """At most: in each pass G r and its product with Gᵀ."""
        return 4.0 * n * d * (POWERS + m * self.iterations)

    def warn_of(self, residual: float) -> None:
        """Warns of answers that are not solved.

        Args:
            residual: the largest ‖(H + λ I) x − v‖/‖v‖ among them.
        """
        if residual > self.tolerance:
            warnings.warn(
                f"LiSSA has not converged: after {self.iterations} iterations there is a residual "
                f"‖(H + λ I) x − v‖/‖v‖ of {residual:.2g}, where {self.tolerance:g} was asked for. "
                "Use more iterations, a larger λ (such as damping_scale=10), or ExactInfluence.",
                stacklevel=2,
            )

    @property
    def refused(self) -> Mapping[str, str]:
        """Rows that are computed again."""
        return {
            "recompute": (
                f"LiSSA reads the gradients of all samples up to {self.passes} times, and would "
                'compute them again each time. Use rows="memory", or run_influences with '
                'rows="zarr".'
            )
        }


class Iterated(Solver):
    """First the scale s, by power iterations; then x = r/s, or its products with v."""

    residuals: Tensor

    def __init__(
        self, V: Float[Tensor, "m d"], λ: float, n: int, method: Lissa, *, forms: bool = False
    ):
        (m, d), self.λ, self.n, self.method, self.forms = V.shape, λ, n, method, forms
        self.V = V.double()
        self.answers = self.V.new_zeros(m if forms else (m, d))
        self.residuals = self.V.new_zeros(m)
        self.open = torch.arange(m, device=V.device)  # which vectors are not solved
        self.powers, self.steps, self.trace, self.s = 0, 0, 0.0, λ
        self.R = _start(d).to(self.V.device)  # what is multiplied with H: first a unit vector
        self.sums = torch.zeros_like(self.R)

    @property
    def wants_rows(self) -> bool:
        """Whether a vector is not solved."""
        return len(self.open) > 0

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Adds the chunk's part of n H r."""
        G = G.double()
        if self.powers == 0:
            self.trace += float(squared_norms(G).sum()) / self.n
        self.sums.addmm_(self.R @ G.mT, G)

    def end_pass(self) -> None:
        """Takes a power iteration or a step."""
        if self.powers < POWERS:
            self._power()
        else:
            self._step()

    def result(self) -> Tensor:
        """The answers."""
        return self.answers

    def _power(self) -> None:
        self.powers += 1
        self.sums.div_(self.n)
        largest = float(torch.linalg.vector_norm(self.sums))
        self.s = self.λ + min(self.trace, MARGIN * largest)
        if self.powers == POWERS or not largest:
            self.powers, self.R = POWERS, self.V.clone()  # r after one step from 0
        else:
            self.R = self.sums / largest
        self.sums = torch.zeros_like(self.R)

    def _step(self) -> None:
        self.steps += 1
        left = self.sums.div_(-self.n * self.s).add_(self.R, alpha=-self.λ / self.s).add_(self.V)
        sizes = torch.linalg.vector_norm(self.V, dim=1).clamp(min=torch.finfo(left.dtype).tiny)
        residuals = torch.linalg.vector_norm(left, dim=1) / sizes
        self.residuals[self.open] = residuals
        solved = residuals <= self.method.tolerance
        if self.steps == self.method.iterations:
            solved = torch.ones_like(solved)
        if solved.any():
            self._take(solved)
            left = left[~solved]
        self.R.add_(left)
        self.sums = torch.zeros_like(self.R)

    def _take(self, solved: Tensor) -> None:
        """Keeps the answers of some vectors, and goes on with the others."""
        X = self.R[solved] / self.s
        self.answers[self.open[solved]] = (X * self.V[solved]).sum(1) if self.forms else X
        self.open, self.V, self.R = self.open[~solved], self.V[~solved], self.R[~solved]


def _start(d: int) -> Float[Tensor, "1 d"]:
    """A unit vector in a direction that is always the same, on whatever device."""
    start = torch.randn(1, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return start.div_(torch.linalg.vector_norm(start))
