r"""DataInf: the mean of the inverses of rank-one matrices, in place of the inverse of their mean.

For one block, with the gradients g_i of the n training samples as rows of G (n, d) and damping λ,

    (1/n) Σ_i (g_i g_iᵀ + λ I)⁻¹ v  =  (1/λ) ( v − (1/n) Gᵀ ( w ⊙ (G v) ) ),   w_i = 1/(λ + ‖g_i‖²)

by Sherman and Morrison. The correction Gᵀ(w ⊙ (G v)) is a sum over training samples, so it is
computed chunk by chunk, and chunks may be added in any grouping. In vᵀ (inverse) v it is
Σ_i w_i (g_i·v)², half the work, or vᵀ C v with C = Gᵀ(w ⊙ G) where there are many v of few entries.

Where rows are nearly parallel (n = 1, copies of a sample), the difference cancels to about λ/‖g‖²
of v, which under automatic damping is 1/(10 d): to nothing in float32. So all of this is float64,
whatever the dtype of the rows, and so are the results: their products with rows cancel again where
v has a part that is orthogonal to the rows.
Source: Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024, equation 5.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.method import Method, OnePass, float64_bytes
from pydvl_datainf.vectors import product


@dataclass(frozen=True)
class DataInf(Method):
    """DataInf's inverse, one pass over the rows."""

    name = "DataInf"
    formula = "mean over training samples of (g gᵀ + λ I)⁻¹, block by block"
    is_damped = True
    passes = 1
    joins = True

    def times(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Times":
        """(v − c/n)/λ for each row v of V, with its correction c = Gᵀ(w ⊙ (G v))."""
        return Times(V, λ, n)

    def forms(self, V: Float[Tensor, "m d"], λ: float, n: int) -> "Forms | NarrowForms":
        """(‖v‖² − q/n)/λ for each row v of V, with q = vᵀ c, whichever way takes less work."""
        m, d = V.shape
        return NarrowForms(V, λ, n) if d * (n + m) < n * m else Forms(V, λ, n)

    def weighed(
        self, C: Float[Tensor, "b r"], outside: Float[Tensor, " b"], λ: float
    ) -> Float[Tensor, "b r"]:
        """√a c with a = λ/(λ + s), for s outside: a/(λ + a ‖c‖²) = 1/(λ + ‖c‖² + s)."""
        return C.double() * (λ / (λ + outside)).sqrt()[:, None]

    def bytes(self, n: int, m: int, d: int) -> int:
        """V in float64 and its corrections; the sums for forms are not larger."""
        return float64_bytes((m, d), (m, d))

    def flops(self, n: int, m: int, d: int) -> float:
        """G v and its correction."""
        return 4.0 * n * m * d


def weights(G: Float[Tensor, "b d"], λ: float) -> Float[Tensor, " b"]:
    """w_i = 1/(λ + ‖g_i‖²)."""
    return 1 / (λ + squared_norms(G))


class Times(OnePass):
    """c = Gᵀ(w ⊙ (G v)), and (v − c/n)/λ."""

    def __init__(self, V: Float[Tensor, "m d"], λ: float, n: int):
        super().__init__(V, λ, n)
        self.sums = torch.zeros_like(self.V)

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Adds the chunk's part of each c, in place: a sum of its own takes as long to add."""
        G = G.double()
        self.sums.addmm_(product(self.V, G) * weights(G, self.λ), G)

    def result(self) -> Float[Tensor, "m d"]:
        """(v − c/n)/λ."""
        return torch.sub(self.V, self.sums, alpha=1 / self.n).div_(self.λ)


class Forms(OnePass):
    """q = Σ_i w_i (g_i·v)², and (‖v‖² − q/n)/λ."""

    def __init__(self, V: Float[Tensor, "m d"], λ: float, n: int):
        super().__init__(V, λ, n)
        self.sums = self.V.new_zeros(len(V))

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Adds the chunk's part of each q."""
        self.sums += product(self.V, G).square() @ weights(G, self.λ)

    def result(self) -> Float[Tensor, " m"]:
        """(‖v‖² − q/n)/λ."""
        return (squared_norms(self.V) - self.sums / self.n) / self.λ


class NarrowForms(OnePass):
    """C = Gᵀ(w ⊙ G), and (‖v‖² − vᵀ C v/n)/λ."""

    def __init__(self, V: Float[Tensor, "m d"], λ: float, n: int):
        super().__init__(V, λ, n)
        self.sums = self.V.new_zeros(V.shape[1], V.shape[1])

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Adds the chunk's part of C."""
        G = G.double()
        self.sums.addmm_(G.mT * weights(G, self.λ), G)

    def result(self) -> Float[Tensor, " m"]:
        """(‖v‖² − vᵀ C v/n)/λ."""
        q = (self.V @ self.sums).mul_(self.V).sum(1)
        return (squared_norms(self.V) - q / self.n) / self.λ
