"""The exact reference."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from pydvl_datainf.blocks import BlockStructure
from pydvl_datainf.errors import ModelError
from pydvl_datainf.gradients import GradientEngine, Gradients
from pydvl_datainf.gradients.relabelled import GaussNewtonEngine, Labels
from pydvl_datainf.gradients.sources import RowsKept
from pydvl_datainf.influence.base import BlockwiseInfluence, Damping
from pydvl_datainf.inverse.methods import EXACT
from pydvl_datainf.objectives import Objective

Curvature: TypeAlias = Literal["empirical", "gauss-newton"]


class ExactInfluence(BlockwiseInfluence):
    r"""Influence functions with the exact inverse of each block's damped Gauss-Newton matrix.

    The influence of training sample k on test sample t is, with one term per block of parameters,

        Σ_l  v_t[l]ᵀ  ((1/n) Σ_i g_i[l] g_i[l]ᵀ + λ_l I)⁻¹  g_k[l]

    which is what DataInf approximates. A block of d_l parameters is solved in float64 by a Cholesky
    factor of d_l x d_l or n x n numbers, whichever is smaller, so that it is affordable for LoRA
    of any rank and some thousands of samples. Each call solves anew: ask many test samples at once.

    With curvature="gauss-newton" the matrix is the true one of a cross entropy, (1/n) Σ_i Σ_k p_ik
    g_ik g_ikᵀ, with g_ik the gradient at label k and p_ik its probability under the model, in place
    of that of the gradients at the given labels; or an unbiased estimate from labels that are drawn
    from the model. Automatic λ is then 0.1 times the mean of that matrix' diagonal.
    Source: Kunstner, Balles, Hennig, "Limitations of the empirical Fisher approximation", NeurIPS
    2019.

    Args:
        model: as in `DataInfInfluence`.
        loss: as in `DataInfInfluence`; with curvature="gauss-newton" torch's cross entropy of
            outputs (B, K), `SequenceClassification`, `TokenClassification` or `CausalLM`.
        regularization: as in `DataInfInfluence`.
        block_structure: as in `DataInfInfluence`.
        gradients: as in `DataInfInfluence`.
        rows: "memory" or "auto", which mean the same here: a block needs the gradients of all
            samples together. Where they do not fit, use `run_influences` with rows="zarr".
        batch_size: as in `DataInfInfluence`.
        max_tokens: as in `DataInfInfluence`.
        progress: as in `DataInfInfluence`.
        damping_scale: as in `DataInfInfluence`.
        curvature: "empirical", the gradients at the given labels, or "gauss-newton", which takes
            K rows a sample, or one with drawn labels, beside its gradient. Runs take the first.
        labels: of the Gauss-Newton matrix: "all", for one label a sample; "drawn", one for each
            label; or "auto": all where a sample has one label of 16 or fewer, and drawn otherwise.
        label_seed: another number makes other draws; the same sample gets the same ones.

    Raises:
        SourceError: if rows are to be computed again.
        ModelError: if there is no such curvature.
        ObjectiveError: if there is no such choice of labels.
    """

    inverse = EXACT

    def __init__(
        self,
        model: nn.Module,
        loss: Objective | Callable[[Any, Tensor], Tensor],
        regularization: Damping = "auto",
        block_structure: BlockStructure = "module",
        *,
        gradients: Gradients = "auto",
        rows: RowsKept = "auto",
        batch_size: int | None = None,
        max_tokens: int | None = None,
        progress: bool = False,
        damping_scale: float | None = None,
        curvature: Curvature = "empirical",
        labels: Labels = "auto",
        label_seed: int = 0,
    ):
        if curvature not in ("empirical", "gauss-newton"):
            raise ModelError(f'curvature must be "empirical" or "gauss-newton", got {curvature!r}.')
        self.curvature: Curvature = curvature
        self._own_labels = labels, label_seed
        super().__init__(
            model,
            loss,
            regularization,
            block_structure,
            gradients=gradients,
            rows=rows,
            batch_size=batch_size,
            max_tokens=max_tokens,
            progress=progress,
            damping_scale=damping_scale,
        )

    def _curvature_engine(
        self, engine: GradientEngine, max_tokens: int | None
    ) -> GradientEngine | None:
        if self.curvature == "empirical":
            return None
        given = engine, self.model, self.objective
        return GaussNewtonEngine(*given, *self._own_labels, max_tokens)
