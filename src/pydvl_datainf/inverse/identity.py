r"""No curvature at all: each block's inverse is I/λ_l, or I where every λ_l is one.

Gradient products vᵀ g are what TracIn takes at one checkpoint (Pruthi et al., NeurIPS 2020), and
the baseline that Kwon et al. (ICLR 2024) call Hessian-free. Scaled by 1/λ_l per block they tell how
much of DataInf is its damping alone.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from pydvl_datainf.vectors import BlockVectors


def inverse_times(
    vectors: BlockVectors, chunks: Iterable[BlockVectors], n: int, damping: Mapping[str, float]
) -> BlockVectors:
    """v/λ_l for each block and vector.

    Args:
        vectors: for each block vectors v as rows, (m, d_l).
        chunks: not read.
        n: not used.
        damping: λ of each block.

    Returns:
        For each block the scaled vectors, (m, d_l).
    """
    return OrderedDict((block, V / damping[block]) for block, V in vectors.items())


def inverse_forms(
    vectors: BlockVectors, chunks: Iterable[BlockVectors], n: int, damping: Mapping[str, float]
) -> BlockVectors:
    """‖v‖²/λ_l for each block and vector.

    Args:
        vectors: for each block vectors v as rows, (m, d_l).
        chunks: not read.
        n: not used.
        damping: λ of each block.

    Returns:
        For each block one number per vector, (m,).
    """
    return OrderedDict((block, V.square().sum(1) / damping[block]) for block, V in vectors.items())
