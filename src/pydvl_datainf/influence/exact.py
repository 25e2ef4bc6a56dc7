"""The exact damped inverse as an influence model: the reference for all others."""

from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.inverse.methods import EXACT


class ExactInfluence(BlockwiseInfluence):
    r"""Influence functions with the exact inverse of each block's damped Gauss-Newton matrix.

    The influence of training sample k on test sample t is, with one term per block of parameters,

        Σ_l  v_t[l]ᵀ  ((1/n) Σ_i g_i[l] g_i[l]ᵀ + λ_l I)⁻¹  g_k[l]

    which is what DataInf approximates. A block of d_l parameters is solved in float64 by a Cholesky
    factor of d_l x d_l or n x n numbers, whichever is smaller, so that it is affordable for LoRA
    of any rank and some thousands of samples. Each call solves anew: ask many test samples at once.

    Args:
        model: as in `DataInfInfluence`.
        loss: as in `DataInfInfluence`.
        regularization: as in `DataInfInfluence`.
        block_structure: as in `DataInfInfluence`.
        gradients: as in `DataInfInfluence`.
        rows: "memory" or "auto", which mean the same here: a block needs the gradients of all
            samples together; or "compressed", where whole ones do not fit. `run_influences` keeps
            them on disk.
        batch_size: as in `DataInfInfluence`.
        max_tokens: as in `DataInfInfluence`.
        progress: as in `DataInfInfluence`.
        damping_scale: as in `DataInfInfluence`.
        curvature: as in `DataInfInfluence`.
        labels: as in `DataInfInfluence`.
        label_seed: as in `DataInfInfluence`.
        rank: as in `DataInfInfluence`.
        basis_sample: as in `DataInfInfluence`.
        basis_seed: as in `DataInfInfluence`.
        sides: as in `DataInfInfluence`.
        preconditioner: as in `DataInfInfluence`.

    Raises:
        SourceError: if rows are to be computed again.
    """

    inverse = EXACT
