r"""EK-FAC: the curvature of a linear layer, diagonal in the eigenbasis of its Kronecker factors.

The gradient of sample i by the weight of a linear layer is G_i = Σ_t g_t x_tᵀ, with inputs x_t and
output gradients g_t at the tokens t of the sample. With the second moments

    A = Σ x xᵀ = Q_A D_A Q_Aᵀ,   S = Σ g gᵀ = Q_S D_S Q_Sᵀ

over the tokens of all training samples, K-FAC takes S ⊗ A for the layer's Gauss-Newton matrix.
EK-FAC keeps the eigenvectors, and takes as eigenvalues the mean squares of the gradients there:

    Λ = (1/n) Σ_i (Q_Sᵀ G_i Q_A)²   (elementwise),   V ↦ Q_S [ (Q_Sᵀ V Q_A) / (Λ + λ) ] Q_Aᵀ

A factor at A or S changes no eigenvector, so sums serve as well as means. A rotation keeps sums of
squares, so that the mean of Λ is that of the squared gradient entries: 0.1 times the mean of Λ, the
damping of Grosse et al., is the automatic λ of all methods here. Nothing cancels.
Source: George et al., "Fast approximate natural gradient descent in a Kronecker-factored
eigenbasis", NeurIPS 2018; for influences Grosse et al., arXiv 2308.03296, 2023. Theirs takes labels
drawn from the model, so that S and Λ are those of the true Gauss-Newton matrix; here both are had.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.inverse.identity import Known
from pydvl_datainf.inverse.method import Method, OnePass, Solver, float64_bytes
from pydvl_datainf.inverse.woodbury import Exact
from pydvl_datainf.vectors import rows_at_once

_EXACT = Exact()


@dataclass(frozen=True, slots=True, eq=False)
class Eigenbasis:
    """The eigenvectors of the factors of one block, in float64.

    Args:
        Q_S: of the second moment of output gradients, as columns, (o, o).
        Q_A: of that of inputs, as columns, (i, i).
        has_bias: whether the last input is the constant 1 of a bias: in flat rows, the o entries of
            the bias stand behind the o x (i - 1) ones of the weight.
    """

    Q_S: Float[Tensor, "o o"]
    Q_A: Float[Tensor, "i i"]
    has_bias: bool

    @classmethod
    def of(
        cls, A: Float[Tensor, "i i"], S: Float[Tensor, "o o"], *, has_bias: bool
    ) -> "Eigenbasis":
        """The eigenbasis of second moments, or of any multiples of them."""
        Q_S, Q_A = (torch.linalg.eigh(moment.double()).eigenvectors for moment in (S, A))
        return cls(Q_S, Q_A, has_bias)

    def rotate(self, V: Float[Tensor, "m d"]) -> Float[Tensor, "m o i"]:
        """Q_Sᵀ V Q_A for each flat row, as a matrix."""
        m, o, i, V = len(V), len(self.Q_S), len(self.Q_A), V.double()
        if self.has_bias:
            weight, bias = V[:, :-o].reshape(m, o, i - 1), V[:, -o:].reshape(m, o, 1)
            return self.Q_S.mT @ torch.cat([weight, bias], 2) @ self.Q_A
        return self.Q_S.mT @ V.reshape(m, o, i) @ self.Q_A

    def squares(self, G: Float[Tensor, "b d"]) -> Float[Tensor, "o i"]:
        """Σ (Q_Sᵀ G Q_A)², elementwise, over some rows."""
        total = self.Q_S.new_zeros(len(self.Q_S), len(self.Q_A))
        for rows in torch.split(G, rows_at_once(G)):
            total += self.rotate(rows).square_().sum(0)
        return total

    def rotate_back(self, W: Float[Tensor, "m o i"]) -> Float[Tensor, "m d"]:
        """Q_S W Q_Aᵀ for each matrix, as a flat row."""
        V = self.Q_S @ W @ self.Q_A.mT
        if self.has_bias:
            return torch.cat([V[:, :, :-1].flatten(1), V[:, :, -1]], dim=1)
        return V.flatten(1)

    def to(self, device: torch.device) -> "Eigenbasis":
        """The same on another device."""
        return Eigenbasis(self.Q_S.to(device), self.Q_A.to(device), self.has_bias)


def check_moments(*moments: Tensor) -> None:
    """Checks that moments of a layer did not overflow.

    Args:
        moments: any of them.

    Raises:
        DampingError: if any entry is infinite or NaN.
    """
    if not all(moment.isfinite().all() for moment in moments):
        raise DampingError(
            "The squared inputs or output gradients of a layer overflow. Scale the inputs, "
            "multiply the loss by a constant < 1, or leave the layer out with a block_structure."
        )


def mean_squares(basis: Eigenbasis, rows: Iterable[Tensor]) -> Float[Tensor, "o i"]:
    """Λ = (1/n) Σ_i (Q_Sᵀ G_i Q_A)², over n rows (b, d) in chunks."""
    total, n = torch.zeros(()), 0
    for G in rows:
        total = total.to(G.device) + basis.squares(G)
        n += len(G)
    return total / n


def layer_flops(n: int, m: int, o: int, i: int) -> float:
    """Operations of rotating n rows, and m vectors there and back, in a layer (o, i)."""
    return 2.0 * (n + 2 * m) * o * i * (o + i)


@dataclass(frozen=True)
class Ekfac(Method):
    """EK-FAC in one block, or the exact inverse in a block that is no linear layer.

    Args:
        basis: of the block; None = it is no linear layer.
        eigenvalues: Λ, (o, i), where it is known; otherwise solvers want the rows for it.
        exact_width: parameters in the widest block that is no linear layer, where the method of all
            blocks is meant, whose memory counts; None = any block may be none.
    """

    basis: Eigenbasis | None = field(default=None, compare=False)
    eigenvalues: Float[Tensor, "o i"] | None = field(default=None, compare=False)
    exact_width: int | None = field(default=None, compare=False)

    name = "EK-FAC"
    formula = (
        "Q_S [(Q_Sᵀ V Q_A)/(Λ + λ)] Q_Aᵀ in blocks that are a linear layer, with eigenvectors Q of "
        "the second moments of its inputs and output gradients and Λ the mean squares of gradients "
        "in their basis; the exact inverse in others"
    )
    is_damped = True

    @classmethod
    def of(
        cls, A: Float[Tensor, "i i"], S: Float[Tensor, "o o"], *, has_bias: bool = False
    ) -> "Ekfac":
        """The method of a layer.

        Args:
            A: second moment of its inputs, or a multiple.
            S: of its output gradients; zero where it took no part.
            has_bias: as in `Eigenbasis`.

        Returns:
            The method, without eigenvalues; with an eigenbasis, if the layer took part.

        Raises:
            DampingError: if a moment overflowed.
        """
        check_moments(A, S)
        return cls(Eigenbasis.of(A, S, has_bias=has_bias)) if S.any() else cls()

    def knowing(self, rows: Iterable[Tensor]) -> "Ekfac":
        """The same with the eigenvalues that all training rows (b, d), in chunks, give it."""
        return self if self.basis is None else Ekfac(self.basis, mean_squares(self.basis, rows))

    @property
    def passes(self) -> int:
        """One, unless the eigenvalues are known."""
        return 0 if self.eigenvalues is not None else 1

    @property
    def joins(self) -> bool:
        """Whether solvers add up Λ, as they do where there is an eigenbasis."""
        return self.basis is not None

    def times(self, V: Float[Tensor, "m d"], λ: float, n: int) -> Solver:
        """Q_S [(Q_Sᵀ V Q_A)/(Λ + λ)] Q_Aᵀ for each row of V."""
        if self.basis is None:
            return _EXACT.times(V, λ, n)
        return self._solver(Times(V, λ, n, self.basis))

    def forms(self, V: Float[Tensor, "m d"], λ: float, n: int) -> Solver:
        """The sum of (Q_Sᵀ V Q_A)²/(Λ + λ) for each row of V."""
        if self.basis is None:
            return _EXACT.forms(V, λ, n)
        return self._solver(Forms(V, λ, n, self.basis))

    def _solver(self, solver: "InEigenbasis") -> Solver:
        if self.eigenvalues is None:
            return solver
        solver.sums = self.eigenvalues.flatten() * solver.n
        return Known(solver.result())

    def bytes(self, n: int, m: int, d: int) -> int:
        """V, its rotations and Λ; or what the exact inverse takes. An eigenbasis is not counted."""
        in_layer = float64_bytes((4 * m, d), (1, d))
        if self.basis is not None:
            return in_layer
        width = d if self.exact_width is None else min(d, self.exact_width)
        exact = _EXACT.bytes(n, m, width)
        return exact if self.exact_width is None else max(exact, in_layer)

    def flops(self, n: int, m: int, d: int) -> float:
        """Rotating rows and vectors, by the sum of inputs and outputs."""
        if self.basis is None:
            return _EXACT.flops(n, m, d)
        return layer_flops(n * self.passes, m, len(self.basis.Q_S), len(self.basis.Q_A))

    @property
    def refused(self) -> Mapping[str, str]:
        """Rows that are computed again, or compressed."""
        return {
            "compressed": (
                "EK-FAC multiplies rows with eigenvectors of layers, which compressed rows are not "
                'long enough for. Use ExactInfluence with rows="compressed", or keep whole rows.'
            ),
            "recompute": (
                "EK-FAC takes its eigenvalues, and the exact inverse of blocks that are no linear "
                "layer, from the gradients of all samples together, so they cannot be computed "
                'again piece by piece. Use rows="memory", or run_influences with rows="zarr".'
            ),
        }

    def to(self, device: torch.device) -> "Ekfac":
        """The same on another device."""
        return Ekfac(
            None if self.basis is None else self.basis.to(device),
            None if self.eigenvalues is None else self.eigenvalues.to(device),
        )


class InEigenbasis(OnePass):
    """n Λ, the sum of (Q_Sᵀ G_i Q_A)².

    Args:
        V: vectors as rows, (m, d).
        λ: the damping.
        n: the number of training rows.
        basis: of the block.
    """

    is_shared = True

    def __init__(self, V: Float[Tensor, "m d"], λ: float, n: int, basis: Eigenbasis):
        super().__init__(V, λ, n)
        self.basis = basis
        self.sums = self.V.new_zeros(V.shape[1])

    def add(self, G: Float[Tensor, "b d"]) -> None:
        """Adds the chunk's part of n Λ."""
        self.sums += self.basis.squares(G).flatten()

    @property
    def eigenvalues(self) -> Float[Tensor, "o i"]:
        """Λ, after the pass."""
        return (self.sums / self.n).reshape(len(self.basis.Q_S), len(self.basis.Q_A))


class Times(InEigenbasis):
    """Q_S [(Q_Sᵀ V Q_A)/(Λ + λ)] Q_Aᵀ."""

    def result(self) -> Float[Tensor, "m d"]:
        """The inverse times each row."""
        return self.basis.rotate_back(self.basis.rotate(self.V) / (self.eigenvalues + self.λ))


class Forms(InEigenbasis):
    """The sum of (Q_Sᵀ V Q_A)²/(Λ + λ)."""

    def result(self) -> Float[Tensor, " m"]:
        """The product of the inverse times each row with that row."""
        rotated = self.basis.rotate(self.V).square_()
        return rotated.div_(self.eigenvalues + self.λ).sum((1, 2))
