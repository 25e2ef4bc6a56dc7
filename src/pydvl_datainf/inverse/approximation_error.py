"""How far an inverse is from the exact one, as it was measured."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no one truth value
class ApproximationError:
    """Relative errors of a block-wise inverse against the exact one, over the same n samples.

    Args:
        blocks: names of the blocks.
        errors: ‖A − E‖/‖E‖ of each block, in Frobenius norm, where A and E hold as rows what the
            approximate and the exact inverse make of the gradients of m test samples, (L,).
        cosines: ⟨A, E⟩/(‖A‖‖E‖) of each block: what is left when only the size differs is 1, (L,).
        widths: d_l, parameters of each block, (L,).
        damping: λ_l of each block, (L,).
        n: training samples over which both inverses were taken.
        m: test samples.
        score_error: the error of the influences of the n training samples on the m test samples,
            summed over blocks, as that of a block.
        rank_correlation: Spearman's, between the approximate and the exact influences on a test
            sample, averaged over test samples; None where it is not defined, as for n = 1.
    """

    blocks: tuple[str, ...]
    errors: Floats
    cosines: Floats
    widths: npt.NDArray[np.int64]
    damping: Floats
    n: int
    m: int
    score_error: float
    rank_correlation: float | None
