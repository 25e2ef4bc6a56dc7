r"""Side bases: rows of a linear layer with fewer outputs and inputs, in which a basis is learned.

The row of a sample is G = Σ_t e_t x_tᵀ (o, i) over its tokens t, with output gradients e_t and
inputs x_t. With orthonormal Q_o (o, a) and Q_i (i, b) its small row is

    Q_oᵀ G Q_i  =  Σ_t (Q_oᵀ e_t)(Q_iᵀ x_t)ᵀ

which takes t (a o + b i + a b) products from e and x, where G takes t o i. A basis U of small rows
makes coordinates U vec(Q_oᵀ G Q_i) = B vec(G) with B = U (Q_o ⊗ Q_i)ᵀ, whose rows are orthonormal
too. What G has outside is known without it: ‖G‖² = Σ_tt' (e_t · e_t')(x_t · x_t').

Q_o and Q_i are the leading eigenvectors of Σ G Gᵀ and Σ Gᵀ G over a sample of the rows.
Source: Choe et al., "What is your data worth to GPT?" (LoGra), arXiv 2405.13954, 2024, whose
projections are random, or by layers' second moments.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.vectors import BlockVectors


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """The side bases of one block.

    Args:
        Q_o: of outputs, as columns.
        Q_i: of inputs, as columns.
        has_bias: whether the last input is the constant 1 of a bias: in flat rows, the o entries of
            the bias stand behind the o x (i - 1) ones of the weight.
    """

    Q_o: Float[Tensor, "o a"]
    Q_i: Float[Tensor, "i b"]
    has_bias: bool

    @property
    def widths(self) -> tuple[int, int]:
        """How many outputs and inputs are kept, a and b."""
        return self.Q_o.shape[1], self.Q_i.shape[1]

    def small(self, V: Float[Tensor, "m d"]) -> Float[Tensor, "m ab"]:
        """Q_oᵀ G Q_i of flat rows, flattened."""
        return (self.Q_o.mT @ _matrices(V, len(self.Q_o), self.has_bias) @ self.Q_i).flatten(1)

    def small_of_tokens(
        self, e: Float[Tensor, "m t o"], x: Float[Tensor, "m t i"]
    ) -> Float[Tensor, "m ab"]:
        """Σ_t (Q_oᵀ e_t)(Q_iᵀ x_t)ᵀ of each sample, flattened."""
        return ((e @ self.Q_o).mT @ (x @ self.Q_i)).flatten(1)

    def saves(self, t: int) -> bool:
        """Whether small rows and norms of t tokens take fewer products than by whole rows."""
        (o, a), (i, b) = self.Q_o.shape, self.Q_i.shape
        return t * (a * o + b * i + a * b) + t * t * (o + i) < t * o * i + a * i * (o + b)

    def whole(self, C: Float[Tensor, "m ab"]) -> Float[Tensor, "m d"]:
        """Q_o C Q_iᵀ of small rows, as flat rows: the transpose of `small`."""
        V: Tensor = self.Q_o.to(C.dtype) @ C.reshape(-1, *self.widths) @ self.Q_i.to(C.dtype).mT
        if self.has_bias:
            return torch.cat([V[:, :, :-1].flatten(1), V[:, :, -1]], dim=1)
        return V.flatten(1)

    def to(self, device: torch.device) -> "Sides":
        """The same on another device."""
        return Sides(self.Q_o.to(device), self.Q_i.to(device), self.has_bias)


@dataclass(slots=True)
class SideMoments:
    """Σ G Gᵀ and Σ Gᵀ G over rows of one block, whose parts are added in float64.

    Args:
        has_bias: as in `Sides`.
        outputs: the first, (o, o).
        inputs: the second, (i, i).
    """

    has_bias: bool
    outputs: Tensor
    inputs: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, int], has_bias: bool, device: torch.device) -> "SideMoments":
        """Those of no rows, for o outputs and i inputs."""
        return cls(
            has_bias, *(torch.zeros(k, k, dtype=torch.float64, device=device) for k in shape)
        )

    def add_tokens(self, e: Float[Tensor, "m t o"], x: Float[Tensor, "m t i"]) -> None:
        """Adds rows of e and x: Σ_tt' e_t (x_t · x_t') e_t'ᵀ, and the same with sides swapped.

        Of so many tokens that t x t products are more, as positions of an image are, by whole rows.
        """
        (t, o), i = e.shape[1:], x.shape[2]
        if 2 * t * t * (o + i) + t * (o * o + i * i) > t * o * i + o * i * (o + i):
            self._add(e_.mT @ x_ for e_, x_ in zip(e, x, strict=True))
            return
        self.outputs += e.flatten(0, 1).mT @ (x @ x.mT @ e).flatten(0, 1)
        self.inputs += x.flatten(0, 1).mT @ (e @ e.mT @ x).flatten(0, 1)

    def add_rows(self, V: Float[Tensor, "m d"]) -> None:
        """Adds flat rows."""
        self._add(_matrices(V, len(self.outputs), self.has_bias))

    def _add(self, rows: Iterable[Tensor]) -> None:
        for G in rows:
            self.outputs += G @ G.mT
            self.inputs += G.mT @ G

    def leading(self, widths: tuple[int, int], dtype: torch.dtype) -> Sides:
        """The leading eigenvectors of both.

        Args:
            widths: a and b.
            dtype: of the rows.

        Returns:
            Side bases.
        """
        Q_o, Q_i = (
            torch.linalg.eigh(M).eigenvectors[:, -k:].to(dtype).contiguous()
            for M, k in zip((self.outputs, self.inputs), widths, strict=True)
        )
        return Sides(Q_o, Q_i, self.has_bias)


def norms_of_tokens(e: Float[Tensor, "m t o"], x: Float[Tensor, "m t i"]) -> Float[Tensor, " m"]:
    """‖Σ_t e_t x_tᵀ‖ of each sample, in float64."""
    e, x = e.double(), x.double()
    return ((e @ e.mT) * (x @ x.mT)).sum((1, 2)).clamp_min(0.0).sqrt()


def on_sides(vectors: Mapping[str, Tensor], sides: Mapping[str, Sides]) -> BlockVectors:
    """Vectors whose rows are small, (m, a b), in the blocks that have side bases."""
    return OrderedDict((b, sides[b].small(v) if b in sides else v) for b, v in vectors.items())


def off_sides(vectors: Mapping[str, Tensor], sides: Mapping[str, Sides]) -> BlockVectors:
    """Whole vectors of small ones."""
    return OrderedDict((b, sides[b].whole(v) if b in sides else v) for b, v in vectors.items())


def _matrices(V: Float[Tensor, "m d"], o: int, has_bias: bool) -> Float[Tensor, "m o i"]:
    """Flat rows as matrices."""
    if not has_bias:
        return V.reshape(len(V), o, -1)
    return torch.cat([V[:, :-o].reshape(len(V), o, -1), V[:, -o:, None]], 2)
