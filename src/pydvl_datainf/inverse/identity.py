r"""No curvature at all: each block's inverse is I/λ_l, or I.

Gradient products vᵀ g are what TracIn takes at one checkpoint (Pruthi et al., NeurIPS 2020), and
the baseline that Kwon et al. (ICLR 2024) call Hessian-free. Scaled by 1/λ_l per block they tell how
much of DataInf is its damping alone.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.inverse.method import Method, Solver


@dataclass(frozen=True)
class HessianFree(Method):
    """The identity, in the dtype of the vectors; no pass over the rows."""

    name = "Hessian-free"
    formula = "the identity, so that influences are products of gradients"
    is_damped = False
    passes = 0
    joins = True

    def times(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Known":
        """Each row v of V itself."""
        return Known(V.clone())

    def forms(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Known":
        """‖v‖² for each row v of V."""
        return Known(V.square().sum(1))

    def bytes(self, n: int, m: int, d: int) -> int:
        """Nothing but the result."""
        return 0

    def flops(self, n: int, m: int, d: int) -> float:
        """As good as none."""
        return 0.0

    def precision(self, dtype: str) -> str:
        """That of the rows, since nothing cancels."""
        return dtype


@dataclass(frozen=True)
class ScaledHessianFree(HessianFree):
    """The identity divided by λ."""

    name = "scaled Hessian-free"
    formula = "I/λ, block by block"
    is_damped = True

    def times(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Known":
        """v/λ for each row v of V."""
        return Known(V / λ)

    def forms(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Known":
        """‖v‖²/λ for each row v of V."""
        return Known(V.square().sum(1) / λ)


class Known(Solver):
    """An answer that needs no rows.

    Args:
        answer: the result.
    """

    sums: Tensor  # not there: nothing is added
    wants_rows = False

    def __init__(self, answer: Tensor):
        self.answer = answer

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Is not asked for."""

    def end_pass(self) -> None:
        """Is not asked for."""

    def result(self) -> Tensor:
        """The answer."""
        return self.answer
