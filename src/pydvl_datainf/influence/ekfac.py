"""The eigenvalue-corrected Kronecker factors of layers, in the place of DataInf's inverse."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from torch import Tensor, nn

from pydvl_datainf.batches import Batch, as_arguments, split_batch
from pydvl_datainf.blocks import BlockStructure
from pydvl_datainf.errors import BlockError, ObjectiveError, OptimizerError
from pydvl_datainf.gradients import Gradients
from pydvl_datainf.gradients.moments import LayerMoments, LinearBlock, linear_blocks
from pydvl_datainf.gradients.moments_beside import with_moments
from pydvl_datainf.gradients.relabelled import DrawnLabels
from pydvl_datainf.gradients.sources import Reader, RowsKept
from pydvl_datainf.influence.arguments import Damping, Loss
from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.influence.fitted import Fitted
from pydvl_datainf.inverse.ekfac import Ekfac
from pydvl_datainf.inverse.methods import EKFAC
from pydvl_datainf.vectors import BlockVectors


class EkfacInfluence(BlockwiseInfluence):
    r"""Influence functions with EK-FAC's inverse in each block that is a linear layer.

    The influence of training sample k on test sample t is, with one term per block of parameters,

        Σ_l  v_t[l]ᵀ  Q_S [ (Q_Sᵀ G_k Q_A) / (Λ + λ_l) ] Q_Aᵀ ,   Λ = (1/n) Σ_i (Q_Sᵀ G_i Q_A)²

    where G_k is the gradient of a layer's weight as a matrix, and Q_A and Q_S are the eigenvectors
    of the second moments of its inputs and its output gradients, over all positions of the training
    samples at which the output gradient is not zero up to rounding. A bias is the weight of an
    input that is 1.
    `nn.Linear` (LoRA's A and B among them), transformers' `Conv1D` and convolutions without groups
    are such layers. Any other block (embeddings, norms, several layers in one block, layers that
    are not called as modules) has the exact inverse, which is feasible where a block or the number
    of samples is small; `block_inverses` tells which has which. With labels="drawn" the output
    gradients and the G_i of Λ are those at labels that the model itself would give, as in Grosse et
    al., for losses that are a cross entropy; the gradients of both samples of an influence stay
    those of the given labels. The eigenbases take Σ (i² + o²) numbers in float64, for layers of i
    inputs and o outputs, and are computed once, by `fit`.
    Source: George et al., NeurIPS 2018; for influences Grosse et al., arXiv 2308.03296, 2023.

    Args:
        model: as in `DataInfInfluence`.
        loss: as in `DataInfInfluence`.
        regularization: as in `DataInfInfluence`; "auto" is 0.1 times the mean of Λ.
        block_structure: as in `DataInfInfluence`; "module", for a layer and its bias together, or
            "parameter_wise".
        gradients: as in `DataInfInfluence`; "functional" takes one more forward and backward pass
            for the moments.
        rows: "memory" or "auto", which mean the same here.
        batch_size: as in `DataInfInfluence`.
        max_tokens: as in `DataInfInfluence`.
        progress: as in `DataInfInfluence`.
        damping_scale: as in `DataInfInfluence`.
        test_objective: as in `DataInfInfluence`.
        labels: at which the curvature is taken: "given", or "drawn" from the model's own
            distribution, one for each label that there is, by the content of the sample. This takes
            the gradients of all training samples once more, and rows of both while it is fitted.
        label_seed: another number makes other draws; the same sample gets the same ones.
        preconditioner: None; the Kronecker factors are those of plain gradients.

    Raises:
        BlockError: if no block is a linear layer.
        OptimizerError: if a preconditioner is given.
        SourceError: if rows are to be computed again.
        ObjectiveError: if there is no such choice of labels.
    """

    inverse = EKFAC

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
        labels: Literal["given", "drawn"] = "given",
        label_seed: int = 0,
        preconditioner: None = None,
    ):
        if preconditioner is not None:
            raise OptimizerError(
                "EK-FAC rotates the gradient of a layer as a matrix, which is none in Adam's "
                "coordinates. Use ExactInfluence or DataInfInfluence, or leave the preconditioner "
                "out."
            )
        if labels not in ("given", "drawn"):
            raise ObjectiveError(f'labels must be "given" or "drawn", got {labels!r}.')
        is_drawn = labels == "drawn"
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
            curvature="gauss-newton" if is_drawn else "empirical",
            labels="drawn",
            label_seed=label_seed,
        )
        self._drawn = DrawnLabels(model, self.objective, label_seed) if is_drawn else None
        self._max_tokens = max_tokens
        if not self.layers:
            raise BlockError(
                "No block is a linear layer or a convolution without groups, so EK-FAC has none to "
                'factor. Use block_structure="module", or ExactInfluence.'
            )

    @property
    def block_inverses(self) -> dict[str, Literal["EK-FAC", "exact"]]:
        """The name of the inverse that each block has.

        Raises:
            NotFittedException: before `fit`.
        """
        return {b: "exact" if m.basis is None else "EK-FAC" for b, m in self._methods.items()}

    @property
    def inverses(self) -> Mapping[str, Ekfac]:
        """The method of each block, which takes its eigenvalues from the rows that it is fed."""
        return {block: Ekfac(method.basis) for block, method in self._methods.items()}

    @property
    def layers(self) -> Mapping[str, LinearBlock]:
        """The blocks that are a linear layer, whether or not it takes part."""
        return linear_blocks(self.model, self.blocks)

    def layer_moments(self, batches: Iterable[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
        """Computes A = Σ x xᵀ and S = Σ g gᵀ of the layers that take part. Does not need `fit`.

        With labels="drawn" the g are those at drawn labels.

        Args:
            batches: pairs (x, y), or mappings that carry their labels.

        Returns:
            For each block with such a layer A (i, i) and S (o, o), summed over all batches.
        """
        moments = self._moments()
        for given in batches:
            batch = self.sample_rows.batch(*as_arguments(given))
            for piece in split_batch(batch, self.sample_rows.batch_size):
                moments.add(piece)
        return moments.sums

    def _moments(self) -> LayerMoments:
        return LayerMoments(
            self.model,
            self.objective,
            self.layers,
            relabel=self._drawn,
            max_tokens=self._max_tokens,
        )

    @property
    def _methods(self) -> Mapping[str, Ekfac]:
        return cast(Mapping[str, Ekfac], self._fitted().methods)  # from `_read`

    def _read(self, reader: Reader, curvature: Reader | None) -> Fitted:
        moments, of_inverse = self._moments(), curvature or reader
        watched = _MomentsReader(
            reader.data,
            with_moments(of_inverse.engine, moments),
            reader.device,
            reader.batch_size,
            reader.progress,
            images=reader.images,
            moments=moments,
        )
        readers = (watched, None) if curvature is None else (reader, watched)
        return _with_eigenbases(super()._read(*readers), moments)


@dataclass(frozen=True, slots=True)
class _MomentsReader(Reader):
    """A reader whose passes over the data leave the moments of layers behind.

    Args:
        moments: to which its engine adds.
    """

    moments: LayerMoments = field(kw_only=True)

    def rows(self) -> Iterator[BlockVectors]:
        """Yields the rows of each batch."""
        self.moments.sums.clear()  # of a pass before this one
        return Reader.rows(self)


def _with_eigenbases(fitted: Fitted, moments: LayerMoments) -> Fitted:
    """The same with the eigenbases of layers, and eigenvalues from the rows of the inverse."""
    methods, source = dict(fitted.methods), fitted.curvature or fitted.source
    for block, sums in moments.sums.items():
        has_bias = moments.layers[block].has_both
        rows = (chunk[block] for chunk in source.chunks())
        methods[block] = Ekfac.of(*sums, has_bias=has_bias).knowing(rows)
    return replace(fitted, methods=methods)
