"""The inverses there are, by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydvl_datainf.inverse import identity, sherman_morrison, woodbury
from pydvl_datainf.vectors import BlockVectors

Times: TypeAlias = Callable[
    [BlockVectors, Iterable[BlockVectors], int, Mapping[str, float]], BlockVectors
]


@dataclass(frozen=True, slots=True)
class Inverse:
    """What takes the place of (H_l + λ_l I)⁻¹ in each block l.

    Args:
        name: of the method.
        formula: in words and letters.
        rows: how the rows of the training samples enter: each by itself into a sum ("summed"), all
            those of a block at once ("together"), or not at all ("unused").
        times: (vectors, chunks of rows, n, damping) to the inverse times the vectors.
        forms: the same to vᵀ (inverse) v, one number per block and vector.
        is_damped: whether λ takes part.
    """

    name: str
    formula: str
    rows: Literal["summed", "together", "unused"]
    times: Times
    forms: Times
    is_damped: bool = True

    @property
    def is_approximate(self) -> bool:
        """Whether it stands for the exact damped inverse."""
        return self.is_damped and self.rows != "together"

    def precision(self, dtype: str) -> str:
        """Of factors, and of what is added up for them: float64 where differences cancel.

        Args:
            dtype: of the rows, by NumPy's name.

        Returns:
            A dtype, by NumPy's name.
        """
        return dtype if self.rows == "unused" else "float64"


DATAINF = Inverse(
    "DataInf",
    "mean over training samples of (g gᵀ + λ I)⁻¹, block by block",
    "summed",
    sherman_morrison.inverse_times,
    sherman_morrison.inverse_forms,
)
EXACT = Inverse(
    "exact",
    "(mean over training samples of g gᵀ + λ I)⁻¹, block by block",
    "together",
    woodbury.inverse_times,
    woodbury.inverse_forms,
)
HESSIAN_FREE = Inverse(
    "Hessian-free",
    "the identity, so that influences are products of gradients",
    "unused",
    identity.inverse_times,
    identity.inverse_forms,
    is_damped=False,
)
SCALED_HESSIAN_FREE = Inverse(
    "scaled Hessian-free",
    "I/λ, block by block",
    "unused",
    identity.inverse_times,
    identity.inverse_forms,
)
INVERSES = {
    inverse.name: inverse for inverse in (DATAINF, EXACT, HESSIAN_FREE, SCALED_HESSIAN_FREE)
}
