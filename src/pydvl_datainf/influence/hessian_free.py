"""The simplest reference: products of gradients."""

from typing import Self

from torch import nn

from pydvl_datainf.blocks import BlockStructure
from pydvl_datainf.errors import DampingError
from pydvl_datainf.gradients import AdamPreconditioner, Gradients
from pydvl_datainf.gradients.sources import RowsKept
from pydvl_datainf.influence.arguments import Damping, Loss
from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.inverse.compression import Rank
from pydvl_datainf.inverse.methods import HESSIAN_FREE, SCALED_HESSIAN_FREE


class HessianFreeInfluence(BlockwiseInfluence):
    r"""Influences without curvature: products of gradients, as they are or scaled per block.

    The influence of training sample k on test sample t is Σ_l v_t[l]ᵀ g_k[l], or, with scaled=True,

        Σ_l  v_t[l]ᵀ g_k[l] / λ_l

    which needs no training gradients but those of sample k. Where `DataInfInfluence` does better
    than plain products, compare with scaled ones first: often the 1/λ_l explain it.
    Source: Pruthi et al., "TracIn", NeurIPS 2020 (at one checkpoint); "Hessian-free" in Kwon, Wu,
    Wu, Zou, "DataInf", ICLR 2024.

    Args:
        model: as in `DataInfInfluence`.
        loss: as in `DataInfInfluence`.
        regularization: as in `DataInfInfluence` with scaled=True; nothing else than "auto" without.
        block_structure: as in `DataInfInfluence`.
        gradients: as in `DataInfInfluence`.
        rows: as in `DataInfInfluence`.
        batch_size: as in `DataInfInfluence`.
        max_tokens: as in `DataInfInfluence`.
        progress: as in `DataInfInfluence`.
        damping_scale: as in `DataInfInfluence` with scaled=True; None without.
        test_objective: as in `DataInfInfluence`.
        rank: as in `DataInfInfluence`.
        basis_sample: as in `DataInfInfluence`.
        basis_seed: as in `DataInfInfluence`.
        preconditioner: as in `DataInfInfluence`.
        scaled: whether the products of block l are divided by λ_l. Otherwise every λ_l is one.

    Raises:
        DampingError: if a regularization or damping_scale is given without scaled=True.
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
        scaled: bool = False,
    ):
        self.inverse = SCALED_HESSIAN_FREE if scaled else HESSIAN_FREE
        super().__init__(
            model,
            loss,
            self._checked(regularization, damping_scale),
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

    def with_regularization(
        self, regularization: Damping, *, damping_scale: float | None = None
    ) -> Self:
        """Changes the damping, where there is one.

        Args:
            regularization: as in the constructor.
            damping_scale: as in the constructor.

        Returns:
            The instance itself. It is unchanged if anything is raised.

        Raises:
            DampingError: as in the constructor.
        """
        checked = self._checked(regularization, damping_scale)
        return super().with_regularization(checked, damping_scale=damping_scale)

    def _checked(self, regularization: Damping, scale: float | None) -> Damping:
        """The damping that the block-wise algebra is to use."""
        if self.inverse.is_damped:
            return regularization
        if scale is None and isinstance(regularization, str) and regularization == "auto":
            return 1.0
        raise DampingError(
            "Plain products of gradients have no damping, so a regularization or damping_scale "
            "would not be used. Leave it out, or divide by it with scaled=True."
        )
