"""LiSSA, the paper's iterative baseline."""

from collections import OrderedDict

from torch import Tensor, nn

from pydvl_datainf.blocks import BlockStructure
from pydvl_datainf.gradients import AdamPreconditioner, Gradients
from pydvl_datainf.gradients.sources import RowsKept
from pydvl_datainf.influence.arguments import Damping, Inputs, Loss
from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.inverse.compression import Rank
from pydvl_datainf.inverse.lissa import Lissa


class LissaInfluence(BlockwiseInfluence):
    r"""Influence functions with LiSSA: the exact inverse's system, solved by iteration.

    In each block (H + λ I) x = v with H = (1/n) Σ_i g_i g_iᵀ is iterated for by

        r ← v + (I − (H + λ I)/s) r,   x = r/s

    with a scale s that lets it converge. It shrinks what is missing by 1 − μ/s in a step, where μ
    is at least λ: under automatic damping it may take about 10 d_l steps. A warning tells of
    answers whose residual ‖(H + λ I) x − v‖/‖v‖ is above the tolerance.
    Source: Agarwal, Bullins, Hazan, JMLR 2017; a baseline in Kwon, Wu, Wu, Zou, "DataInf", ICLR
    2024, there with 10 steps.

    Args:
        model: as in `DataInfInfluence`.
        loss: as in `DataInfInfluence`.
        regularization: as in `DataInfInfluence`.
        block_structure: as in `DataInfInfluence`.
        gradients: as in `DataInfInfluence`.
        rows: "memory" or "auto", which mean the same here: each step reads the gradients of all
            samples; or "compressed". Where they do not fit, use `run_influences` with rows="zarr".
        batch_size: as in `DataInfInfluence`.
        max_tokens: as in `DataInfInfluence`.
        progress: as in `DataInfInfluence`.
        damping_scale: as in `DataInfInfluence`.
        test_objective: as in `DataInfInfluence`.
        rank: as in `DataInfInfluence`.
        basis_sample: as in `DataInfInfluence`.
        basis_seed: as in `DataInfInfluence`.
        preconditioner: as in `DataInfInfluence`.
        iterations: the most steps.
        tolerance: the residual at which a sample's steps end.

    Raises:
        ModelError: if iterations or tolerance are not positive.
        SourceError: if rows are to be computed again.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        regularization: Damping = "auto",
        block_structure: BlockStructure = "module",
        *,
        gradients: Gradients = "auto",
        rows: RowsKept = "auto",
        batch_size: int | None = None,
        max_tokens: int | None = None,
        progress: bool = False,
        damping_scale: float | None = None,
        test_objective: Loss | None = None,
        rank: Rank | None = None,
        basis_sample: int | None = None,
        basis_seed: int = 0,
        preconditioner: AdamPreconditioner | None = None,
        iterations: int = 100,
        tolerance: float = 1e-2,
    ):
        self.inverse = Lissa(iterations, tolerance)
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
            test_objective=test_objective,
            rank=rank,
            basis_sample=basis_sample,
            basis_seed=basis_seed,
            preconditioner=preconditioner,
        )

    def residuals_by_block(self, x: Inputs, y: Tensor | None = None) -> "OrderedDict[str, Tensor]":
        """Computes how far from solved the factors of some samples are.

        Args:
            x: inputs (B, ...), or a mapping that carries its labels.
            y: targets (B, ...); None with a mapping.

        Returns:
            For each block ‖(H + λ I) x − v‖/‖v‖ of each sample, shape (B,).
        """
        fitted = self._fitted()
        vectors = fitted.projected(self.loss_gradients_by_block(x, y))
        self.check_unchanged()
        residuals: dict[str, Tensor] = {}
        fitted.solve(self.inverse.times, vectors, residuals)
        return OrderedDict((block, residuals[block]) for block in vectors)
