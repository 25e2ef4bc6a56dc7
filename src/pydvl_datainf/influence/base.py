"""The pyDVL face: a `TorchInfluenceFunctionModel` with an inverse for each block."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypeAlias, cast, overload

import torch
from pydvl.influence.torch.influence_function_model import TorchInfluenceFunctionModel
from pydvl.influence.types import InfluenceMode, UnsupportedInfluenceModeException
from pydvl.utils.exceptions import NotFittedException
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from pydvl_datainf.batches import (
    Batch,
    as_batches,
    batch_length,
    batch_named,
    batch_to,
    split_batch,
)
from pydvl_datainf.blocks import Blocks, BlockStructure
from pydvl_datainf.errors import BatchError, DampingError, ModelError, SourceError
from pydvl_datainf.fingerprint import DataChecksum
from pydvl_datainf.gradients import GradientEngine, Gradients, gradient_engine
from pydvl_datainf.gradients.by_length import ByLengthEngine
from pydvl_datainf.gradients.compressed import CompressedRows
from pydvl_datainf.gradients.losses import LOSS, LossEngine
from pydvl_datainf.gradients.perturbation import perturbation_rows
from pydvl_datainf.gradients.relabelled import GaussNewtonEngine, Labels
from pydvl_datainf.gradients.sources import Reader, RowsKept, has_fixed_order
from pydvl_datainf.gradients.supported import check_model, preserved_rng, rows_dtype
from pydvl_datainf.influence.fitted import Fitted, check_order
from pydvl_datainf.inverse.compression import Rank, compression_of
from pydvl_datainf.inverse.damping import (
    check_finite,
    check_representable,
    given_damping,
    given_scale,
)
from pydvl_datainf.inverse.method import Makes, Method
from pydvl_datainf.inverse.sweep import at_scales
from pydvl_datainf.objectives import ImageLayout, Objective, OutputLoss, as_objective
from pydvl_datainf.objectives.moving import move
from pydvl_datainf.vectors import (
    BlockVectors,
    concatenated,
    grouped,
    narrowed,
    products,
    total,
    widened,
)

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
Curvature: TypeAlias = Literal["empirical", "gauss-newton"]
Damping: TypeAlias = float | Mapping[str, float] | Literal["auto"]

_GROUP_BYTES = 2**29  # rows that self_influences holds at once, beside those that are kept


class BlockwiseInfluence(TorchInfluenceFunctionModel):
    """Influence functions with an inverse for each block of parameters, fed by rows of gradients.

    The common part of `DataInfInfluence`, `ExactInfluence`, `LissaInfluence` and
    `HessianFreeInfluence`, which tell the inverse. Arguments are those of `DataInfInfluence`.
    """

    inverse: Method
    """What takes the place of the inverse of each block."""

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
        test_objective: Objective | Callable[[Any, Tensor], Tensor] | None = None,
        rank: Rank | None = None,
        basis_sample: int | None = None,
        basis_seed: int = 0,
    ):
        check_model(model)
        self.blocks = Blocks.from_model(model, block_structure)
        self.objective = as_objective(loss)
        self.test_objective = None if test_objective is None else as_objective(test_objective)
        self.images = ImageLayout.of(model)
        super().__init__(model, cast(Any, loss))
        self._select_parameters()
        self._given_damping, self._damping_scale = self._checked_damping(
            regularization, damping_scale
        )
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise BatchError(f"batch_size must be a positive number or None, got {batch_size!r}.")
        if rows not in ("memory", "recompute", "compressed", "auto"):
            raise SourceError(
                f'rows must be "memory", "recompute", "compressed" or "auto", got {rows!r}.'
            )
        self.inverse.check_rows(rows)
        self.compression = compression_of(rows, rank, basis_sample, basis_seed)
        # Solvers that cannot be joined hold all rows, so there is nothing to save.
        self.rows_kept: RowsKept = "memory" if rows == "auto" and not self.inverse.joins else rows
        self.batch_size = batch_size
        self.progress = progress
        engine = gradient_engine(gradients, model, self.objective, self.blocks)
        if curvature not in ("empirical", "gauss-newton"):
            raise ModelError(f'curvature must be "empirical" or "gauss-newton", got {curvature!r}.')
        if curvature != "empirical" and self.compression is not None:
            raise SourceError(
                "The bases of compressed rows are learned from the gradients, and this curvature "
                'takes other rows. Use rows="memory", or curvature="empirical".'
            )
        self.curvature_engine: GaussNewtonEngine | None = (
            None  # the rows are those of the gradients
        )
        if curvature == "gauss-newton":
            given = (engine, model, self.objective)
            self.curvature_engine = GaussNewtonEngine(*given, labels, label_seed, max_tokens)

        def by_length(engine: Any) -> Any:
            return engine if max_tokens is None else ByLengthEngine(engine, max_tokens)

        self._engine = self._test_engine = by_length(engine)
        if self.test_objective is not None:
            asked = gradient_engine(gradients, model, self.test_objective, self.blocks)
            self._test_engine = by_length(asked)
        self._losses = by_length(LossEngine(model, self.objective))
        self._fit: Fitted | None = None

    # Fitting

    def fit(self, data: DataLoader[Any] | Iterable[Any]) -> Self:
        """Reads the training data: counts it, chooses λ, and keeps rows where they fit.

        Args:
            data: a DataLoader or another iterable of batches that can be read again. Its order and
                its batches do not matter to the inverse.

        Returns:
            The fitted instance itself. It is unchanged if anything is raised.

        Raises:
            SourceError: if the data is empty or can be read only once.
            DampingError: if the gradients of a block are zero, so that no λ follows from them.
            ModelError: if the model's per-sample gradients are not defined.
        """
        self._select_parameters()
        reader = self._reader(data)
        engine = self.curvature_engine
        curvature = None if engine is None else replace(reader, engine=engine)
        self._fit = self._read(reader, curvature)
        return self

    def _read(self, reader: Reader, curvature: Reader | None) -> Fitted:
        settings = (self._given_damping, self.blocks.widths, self.dtype, self._damping_scale)
        keep = self.compression or self.rows_kept
        return Fitted.read(reader, self.model, keep, *settings, curvature)

    def is_fitted_on(self, data: Iterable[Any]) -> bool:
        """Whether `fit` saw these samples, in this order, and the model is as it was then.

        Args:
            data: batches, whose lengths do not matter.

        Returns:
            False before `fit`, and where the loader that was fitted has no fixed order. Of data
            that is read again for each pass, what was seen by `fit` counts.
        """
        if self._fit is None or not self._fit.has_fixed_order:
            return False
        seen = DataChecksum()
        for batch in data:
            seen.add(batch_named(self.images.by_sample(batch)))
        return seen.sums == self._fit.data and not self._fit.changes(self.model)

    def with_regularization(
        self, regularization: Damping, *, damping_scale: float | None = None
    ) -> Self:
        """Changes the damping. A fitted instance stays fitted: rows are not computed again.

        Args:
            regularization: as in the constructor.
            damping_scale: as in the constructor.

        Returns:
            The instance itself. It is unchanged if anything is raised.

        Raises:
            DampingError: if a number is not positive, a name is not a block's, a block that is
                chosen automatically has no gradient, or none is and damping_scale is given.
        """
        given, scale = self._checked_damping(regularization, damping_scale)
        widths = self.blocks.widths
        if self._fit is not None:
            if self._fit.norms is None and len(given) < len(widths):
                self.check_unchanged()  # before the rows are read for their norms
            self._fit = self._fitted().damped(given, widths, self.dtype, scale)
        self._given_damping, self._damping_scale = given, scale
        return self

    def _checked_damping(
        self, regularization: Damping, scale: float | None
    ) -> tuple[dict[str, float], float]:
        """λ of the blocks that are given one, and what others are multiplied by."""
        given = given_damping(regularization, self.blocks.names)
        return given, given_scale(scale, given, self.blocks.names)

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has succeeded."""
        return self._fit is not None

    @property
    def model_device(self) -> torch.device:
        """Where the parameters in blocks are now, however they got there."""
        return self.model.get_parameter(next(iter(self.blocks.shapes))).device

    @property
    def block_names(self) -> list[str]:
        """The names of the blocks: paths of modules or parameters, or the caller's names."""
        return list(self.blocks.names)

    @property
    def inverses(self) -> Mapping[str, Method]:
        """What takes the place of the inverse in each block, and is fed rows."""
        return dict.fromkeys(self.blocks.names, self.inverse)

    @property
    def parameter_dict(self) -> dict[str, dict[str, Tensor]]:
        """For each block its parameters by name, detached."""
        self._select_parameters()  # the model may have been moved since
        members = self.blocks.members.items()
        return {block: {n: self._model_params[n] for n in names} for block, names in members}

    @property
    def damping(self) -> dict[str, float]:
        """λ of each block, as used.

        Raises:
            NotFittedException: before `fit`.
        """
        return dict(self._fitted().damping)

    @property
    def fixed_damping(self) -> dict[str, float]:
        """λ of the blocks that have one: all of them after `fit`, those given before."""
        return dict(self._given_damping if self._fit is None else self._fit.damping)

    @property
    def damping_scale(self) -> float:
        """What λ that are chosen automatically are multiplied by."""
        return self._damping_scale

    @property
    def n_samples(self) -> int | None:
        """How many training samples `fit` saw; None before."""
        return None if self._fit is None else self._fit.source.n

    @property
    def energy(self) -> dict[str, float]:
        """For each block which share of Σ‖g‖² over the training samples lies in its basis.

        It is 1 where rows are whole. That of `influences` may be larger or smaller.

        Raises:
            NotFittedException: before `fit`.
        """
        return self._fitted().energy(self.blocks.names)

    @property
    def ranks(self) -> dict[str, int]:
        """For each block how many numbers of a row are kept: parameters, or coordinates.

        Raises:
            NotFittedException: before `fit`.
        """
        return self._fitted().ranks(self.blocks.widths)

    @property
    def fitted_data(self) -> Mapping[str, int] | None:
        """Checksums of the tensors that `fit` saw; None before, or if they had no fixed order."""
        return self._fit.data if self._fit is not None and self._fit.has_fixed_order else None

    def unfitted(self, *, fix_damping: bool = True) -> Self:
        """A copy that shares the model but not the rows.

        Args:
            fix_damping: whether the λ of a fitted instance are given in the copy; otherwise those
                that were chosen automatically are chosen anew when it is fitted.

        Returns:
            The copy.
        """
        twin = copy.copy(self)
        if fix_damping:
            twin._given_damping = self.fixed_damping
        twin._fit = None
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """That of gradients and influences: float64 if any parameter is, otherwise float32.

        Factors of `DataInfInfluence` and `ExactInfluence` are float64 always: float32 is not enough
        for their products with gradients where training samples are much alike.
        """
        return rows_dtype(self._model_params.values())

    def check_unchanged(self) -> None:
        """Compares every parameter and buffer with what `fit` saw.

        Raises:
            NotFittedException: before `fit`.
            ModelError: if any differs.
        """
        changed = self._fitted().changes(self.model)
        if changed:
            some = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
            raise ModelError(
                f"The model changed after fit ({len(changed)} tensors: {some}), so its gradients "
                "no longer belong to the fitted ones. Call fit again."
            )

    # Influences of any data

    def influences(
        self,
        x_test: Inputs,
        y_test: Tensor | None = None,
        x: Inputs | None = None,
        y: Tensor | None = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> Tensor:
        """Computes the influence of each sample of (x, y) on each of (x_test, y_test).

        Args:
            x_test: test inputs (m, ...), or a mapping that carries its labels.
            y_test: test targets (m, ...); None with a mapping.
            x: training inputs (b, ...) or a mapping; None = the test samples themselves, with
                their loss as training samples, also where there is a `test_objective`.
            y: training targets (b, ...); None with a mapping.
            mode: "up" for influences, "perturbation" for their derivative by x.

        Returns:
            Influences, shape (m, b); in perturbation mode (m, b, *x.shape[1:]). Entry [i, j] is the
            influence of training sample j on test sample i.

        Raises:
            NotFittedException: before `fit`.
            UnsupportedInfluenceModeException: if there is no such mode.
            ValueError: if x comes without y or y without x.
            ModelError: if the model changed after `fit`.
        """
        return self._added(self._products(x_test, y_test, x, y, mode))

    def influences_by_block(
        self,
        x_test: Inputs,
        y_test: Tensor | None = None,
        x: Inputs | None = None,
        y: Tensor | None = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> "OrderedDict[str, Tensor]":
        """Computes `influences`, with its arguments and errors, block by block.

        Returns:
            For each block its influences, shaped as in `influences`; they add up to the whole.
        """
        return self._narrowed(self._products(x_test, y_test, x, y, mode))

    def _products(
        self,
        x_test: Inputs,
        y_test: Tensor | None,
        x: Inputs | None,
        y: Tensor | None,
        mode: InfluenceMode | str,
    ) -> BlockVectors:
        """Influences in the dtype in which they are computed."""
        fitted, mode = self._fitted(), checked_mode(mode)
        test = self._batch(x_test, y_test)
        if x is None and y is not None:
            raise BatchError(
                "Labels y came without inputs x. Pass both, or neither for the test data."
            )
        train = test if x is None else self._batch(x, y)
        self.check_unchanged()
        left = self._rows(test, self._test_engine)
        if mode == InfluenceMode.Perturbation:
            return self._perturbations(self._factors(fitted, left), train)
        right = left if train is test and self.test_objective is None else self._rows(train)
        if isinstance(fitted.source, CompressedRows):
            left, right = fitted.projected(left), fitted.projected(right)
        if batch_length(test) <= batch_length(train):
            return products(self._transformed(fitted, left), right)
        return products(left, self._transformed(fitted, right))

    def influence_factors(self, x: Inputs, y: Tensor | None = None) -> Tensor:
        """Computes the damped inverse times the gradient of each test sample.

        Where there is a `test_objective`, the gradient is that of it.

        Args:
            x: inputs (B, ...), or a mapping that carries its labels.
            y: targets (B, ...); None with a mapping.

        Returns:
            Factors as rows, shape (B, n_parameters), in the order of `named_parameters()`; in
            float64, but for plain and scaled products of gradients.

        Raises:
            NotFittedException: before `fit`.
            ModelError: if the model changed after `fit`.
        """
        return self.blocks.flatten(self.influence_factors_by_block(x, y))

    def influence_factors_by_block(
        self, x: Inputs, y: Tensor | None = None
    ) -> "OrderedDict[str, Tensor]":
        """Computes `influence_factors`, with its arguments and errors, block by block.

        Returns:
            For each block its factors as rows, shape (B, d_l).
        """
        fitted, batch = self._fitted(), self._batch(x, y)
        self.check_unchanged()
        return self._factors(fitted, self._rows(batch, self._test_engine))

    def influences_from_factors(
        self,
        z_test_factors: Tensor,
        x: Inputs,
        y: Tensor | None = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> Tensor:
        """Computes influences from the factors of the test samples.

        Args:
            z_test_factors: from `influence_factors`, shape (m, n_parameters).
            x: training inputs (b, ...), or a mapping that carries its labels.
            y: training targets (b, ...); None with a mapping.
            mode: "up" or "perturbation".

        Returns:
            Influences, shaped as in `influences`.

        Raises:
            BlockError: if the factors are of another width.
            ModelError: if the model changed after `fit`.
        """
        vectors = self.blocks.unflatten(z_test_factors)
        return self._added(self._from_factors(vectors, x, y, mode))

    def influences_from_factors_by_block(
        self,
        z_test_factors: Mapping[str, Tensor],
        x: Inputs,
        y: Tensor | None = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> "OrderedDict[str, Tensor]":
        """Computes `influences_from_factors`, with its arguments and errors, block by block.

        The factors are those of `influence_factors_by_block`, for all or some of the blocks.

        Returns:
            For each block of the factors its influences, shaped as in `influences`.
        """
        return self._narrowed(self._from_factors(z_test_factors, x, y, mode))

    def _from_factors(
        self,
        z_test_factors: Mapping[str, Tensor],
        x: Inputs,
        y: Tensor | None,
        mode: InfluenceMode | str,
    ) -> BlockVectors:
        """Influences from factors, in the wider dtype of factors and rows."""
        device, mode = self._fitted().device, checked_mode(mode)
        self.blocks.check_vectors(z_test_factors)
        batch = self._batch(x, y)
        self.check_unchanged()
        factors = {b: f.to(device) for b, f in z_test_factors.items()}
        if mode == InfluenceMode.Perturbation:
            return self._perturbations(factors, batch)
        return products(factors, self._rows(batch))

    def loss_gradients(self, x: Inputs, y: Tensor | None = None) -> Tensor:
        """Computes the gradient of each sample's own loss. Does not need `fit`.

        Args:
            x: inputs (B, ...), or a mapping that carries its labels.
            y: targets (B, ...); None with a mapping.

        Returns:
            Gradients as rows, shape (B, n_parameters), in the order of `named_parameters()`.
        """
        return self.blocks.flatten(self.loss_gradients_by_block(x, y))

    def loss_gradients_by_block(
        self, x: Inputs, y: Tensor | None = None
    ) -> "OrderedDict[str, Tensor]":
        """Computes `loss_gradients`, with its arguments, block by block.

        Returns:
            For each block gradients as rows, shape (B, d_l).
        """
        return self._rows(self._batch(x, y))

    def test_gradients_by_block(
        self, x: Inputs, y: Tensor | None = None
    ) -> "OrderedDict[str, Tensor]":
        """As `loss_gradients_by_block`, but of the `test_objective` where there is one.

        Args:
            x: inputs (B, ...), or a mapping that carries its labels.
            y: targets (B, ...); None with a mapping.

        Returns:
            For each block gradients as rows, shape (B, d_l).
        """
        if self.test_objective is None:
            return self.loss_gradients_by_block(x, y)
        return self._rows(self._batch(x, y), self._test_engine)

    def curvature_rows_by_block(
        self, x: Inputs, y: Tensor | None = None
    ) -> "OrderedDict[str, Tensor]":
        """The rows that the inverse is made of: the gradients, or those of another curvature.

        Args:
            x: inputs (B, ...), or a mapping that carries its labels.
            y: targets (B, ...); None with a mapping.

        Returns:
            For each block rows, (B, d_l), or (B K, d_l) where there are K of each sample.
        """
        return self._rows(self._batch(x, y), self.curvature_engine)

    def curvature_settings(self, x: Inputs, y: Tensor | None = None) -> Mapping[str, str | int]:
        """What tells these rows, where they are not the gradients, and how many a sample has.

        Args:
            x: inputs of some samples, or a mapping that carries its labels.
            y: targets; None with a mapping.

        Returns:
            `labels`, "all" or "drawn", `rows` of each sample, and the `label_seed` of draws.
        """
        engine = self.curvature_engine
        return {} if engine is None else engine.settings(self._batch(x, y))

    def losses(self, data: Any) -> Tensor:
        """Computes the loss of each sample, in one forward pass. Does not need `fit`.

        Args:
            data: a loader in fixed order, a list of batches, or a single batch.

        Returns:
            Losses by the objective, shape (n,), in the order of the data.

        Raises:
            SourceError: if the loader has no fixed order, or the data is empty.
        """
        check_order(has_fixed_order(data))
        batches = as_batches(data)
        reader = replace(self._reader(batches), progress=self.progress and batches is data)
        parts = [self._losses.rows(batch)[LOSS][:, 0] for batch in reader.batches("losses")]
        if not parts:
            raise SourceError("The data is empty; losses need at least one sample.")
        return torch.cat(parts).to(self.dtype)

    # Influences of the fitted data, from its rows

    def training_gradients_by_block(self) -> "Iterator[OrderedDict[str, Tensor]]":
        """The gradients of the fitted samples, chunk by chunk: as kept, or computed again.

        Of compressed rows it is their part in the bases.

        Yields:
            For each block gradients as rows, shape (b, d_l), in the order of the training loader.
        """
        fitted = self._fitted()
        self.check_unchanged()
        yield from map(fitted.lifted, fitted.chunks())

    @overload
    def training_influences(
        self, x_test: Inputs, y_test: Tensor | None = None, *, by_block: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def training_influences(
        self, x_test: Inputs, y_test: Tensor | None = None, *, by_block: Literal[True]
    ) -> "OrderedDict[str, Tensor]": ...
    def training_influences(
        self, x_test: Inputs, y_test: Tensor | None = None, *, by_block: bool = False
    ) -> "Tensor | OrderedDict[str, Tensor]":
        """Computes the influence of every fitted training sample, from the rows that `fit` read.

        Args:
            x_test: test inputs (m, ...), or a mapping that carries its labels.
            y_test: test targets (m, ...); None with a mapping.
            by_block: whether to return each block's influences instead of their sum.

        Returns:
            Influences, shape (m, n), columns in the order of the training loader; or for each
            block such a matrix.

        Raises:
            NotFittedException: before `fit`.
            SourceError: if the training loader has no fixed order.
            ModelError: if the model changed after `fit`.
        """
        fitted = self._fitted()
        fitted.check_order()
        batch = self._batch(x_test, y_test)
        self.check_unchanged()
        vectors = fitted.projected(self._rows(batch, self._test_engine))
        factors = self._transformed(fitted, vectors)
        if not by_block:
            return self._on_training(fitted, factors)
        with preserved_rng(fitted.device):
            parts = (products(factors, rows) for rows in fitted.source.chunks())
            return concatenated([self._narrowed(part) for part in parts], dim=1)

    def _on_training(self, fitted: Fitted, factors: BlockVectors) -> Tensor:
        """Their products with the rows of all fitted samples."""
        with preserved_rng(fitted.device):
            parts = (products(factors, rows) for rows in fitted.source.chunks())
            return torch.cat([self._added(part) for part in parts], dim=1)

    def damping_sweep(
        self,
        x_test: Inputs,
        y_test: Tensor | None = None,
        *,
        scales: Sequence[float] = (0.1, 1.0, 10.0, 100.0),
    ) -> dict[float, Tensor]:
        """Computes `training_influences` under multiples of the fitted λ, to see what λ does.

        Test gradients are computed once, and what an inverse is made of is added up once where it
        does not depend on λ, as in the exact one and in EK-FAC over whole rows. The fitted λ stay
        as they are.

        Args:
            x_test: test inputs (m, ...), or a mapping that carries its labels.
            y_test: test targets (m, ...); None with a mapping.
            scales: what every λ_l is multiplied by, one after the other.

        Returns:
            For each scale influences, shape (m, n), columns in the order of the training loader.

        Raises:
            NotFittedException: before `fit`.
            DampingError: if the method has no λ, or a scale is not positive or none is given.
            SourceError: if the training loader has no fixed order.
            ModelError: if the model changed after `fit`.
        """
        fitted = self._fitted()
        fitted.check_order()
        if not self.inverse.is_damped or not scales:
            raise DampingError(
                "A sweep is over multiples of λ, and there is none. Give a method with a damping "
                "some scales, such as (0.1, 1, 10)."
            )
        multiples = [given_scale(scale, {}, self.blocks.names) for scale in scales]
        for factor in multiples:
            check_representable({b: factor * λ for b, λ in fitted.damping.items()}, self.dtype)
        batch = self._batch(x_test, y_test)
        self.check_unchanged()
        vectors = fitted.projected(self._rows(batch, self._test_engine))
        factors = self._swept(fitted, vectors, multiples)
        found = torch.split(self._on_training(fitted, factors), batch_length(batch))
        return dict(zip(scales, found, strict=True))

    def _swept(
        self, fitted: Fitted, vectors: BlockVectors, multiples: Sequence[float]
    ) -> BlockVectors:
        """The inverse times vectors under each multiple of λ, one below the other."""
        if self.compression is None:
            makes = {b: at_scales(method.times, multiples) for b, method in self._methods.items()}
            return self._transformed(fitted, vectors, makes)
        # Compressed rows are fed as λ weighs them: passes for each λ, over what is in memory.
        dampings = ({b: factor * λ for b, λ in fitted.damping.items()} for factor in multiples)
        under = (replace(fitted, damping=damping) for damping in dampings)
        return concatenated([self._transformed(one, vectors) for one in under])

    @overload
    def self_influences(self, data: Any = None, *, by_block: Literal[False] = False) -> Tensor: ...
    @overload
    def self_influences(
        self, data: Any = None, *, by_block: Literal[True]
    ) -> "OrderedDict[str, Tensor]": ...
    def self_influences(
        self, data: Any = None, *, by_block: bool = False
    ) -> "Tensor | OrderedDict[str, Tensor]":
        """Computes the influence of each sample on itself, Σ_l g_kᵀ (inverse_l) g_k.

        With compressed rows, g_k is the part of the gradient in the bases.

        Samples are taken in groups of up to 512 MiB of rows in float64; each group needs one pass
        over the training rows, which with recomputed rows is a pass over the data.

        Args:
            data: a loader or a single batch; None = the fitted training data.
            by_block: whether to return each block's part instead of their sum.

        Returns:
            Self-influences, shape (n,), not negative, in the order of the data; or for each block
            such a vector.

        Raises:
            NotFittedException: before `fit`.
            SourceError: if the loader has no fixed order or the data is empty.
            ModelError: if the model changed after `fit`.
        """
        fitted = self._fitted()
        self.check_unchanged()
        with preserved_rng(fitted.device):
            check_order(fitted.has_fixed_order if data is None else has_fixed_order(data))
            if data is None:
                own = fitted.source.chunks()
            else:
                own = map(fitted.projected, self._reader(as_batches(data)).rows())
            groups = grouped(map(widened, own), _GROUP_BYTES)
            parts: list[BlockVectors] = []
            residuals: list[Tensor] = []
            for group in groups:
                found: dict[str, Tensor] = {}
                parts.append(self._forms(fitted, group, found))
                residuals += found.values()
        if not parts:
            raise SourceError("The data is empty; self-influences need at least one sample.")
        self._warn_of(residuals)
        joined = concatenated(parts, dim=0)
        return self._narrowed(joined) if by_block else self._added(joined)

    # The algebra over all blocks

    @property
    def _methods(self) -> Mapping[str, Method]:
        """The method of each block, with what is known of it since `fit`."""
        return dict.fromkeys(self.blocks.members, self.inverse)

    def _factors(self, fitted: Fitted, vectors: BlockVectors) -> BlockVectors:
        """The inverse times whole vectors; for compressed rows, the part of it in their bases."""
        return fitted.lifted(self._transformed(fitted, fitted.projected(vectors)))

    def _transformed(
        self, fitted: Fitted, vectors: BlockVectors, makes: Makes | None = None
    ) -> BlockVectors:
        """The inverse times vectors that are as the rows are: whole, or coordinates."""
        residuals: dict[str, Tensor] = {}
        times = makes or {block: method.times for block, method in self._methods.items()}
        factors = fitted.solve(times, vectors, residuals, self.inverse.weighed)
        check_finite(factors)
        if residuals:
            self._warn_of(residuals.values())
        return factors

    def _warn_of(self, residuals: Iterable[Tensor]) -> None:
        """Warns where answers that were iterated for are not solved."""
        self.inverse.warn_of(max((float(r.max()) for r in residuals), default=0.0))

    def _forms(
        self, fitted: Fitted, vectors: BlockVectors, residuals: dict[str, Tensor]
    ) -> BlockVectors:
        forms = {block: method.forms for block, method in self._methods.items()}
        return fitted.solve(forms, vectors, residuals, self.inverse.weighed)

    def _perturbations(self, factors: Mapping[str, Tensor], batch: Batch) -> BlockVectors:
        narrow = self._narrowed(factors)  # as what they are multiplied with: a graph of the model
        pieces = [
            perturbation_rows(self.model, self.objective, self.blocks, narrow, piece)
            for piece in split_batch(batch, self.batch_size)
        ]
        return concatenated([OrderedDict(piece) for piece in pieces], dim=1)

    def _narrowed(self, parts: Mapping[str, Tensor]) -> BlockVectors:
        """What was computed in float64, in the dtype of the influences; checked for overflow."""
        scores = narrowed(parts, self.dtype)
        check_finite(scores)
        return scores

    def _added(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The sum over blocks, in the dtype of the influences."""
        score = total(parts).to(self.dtype)
        if not score.isfinite().all():
            self._narrowed(parts)  # names the blocks
            check_finite({"all together": score})
        return score

    # What pyDVL's base class asks for

    def _solve_hvp(self, rhs: Tensor) -> Tensor:
        return self.blocks.flatten(self._factors(self._fitted(), self.blocks.unflatten(rhs)))

    def _loss_grad(self, x: Inputs, y: Tensor | None = None) -> Tensor:
        return self.loss_gradients(x, y)

    def to(self, device: torch.device | str) -> Self:
        """Moves the model, the fitted rows, and what the loss holds.

        Args:
            device: where to.

        Returns:
            The instance itself.
        """
        super().to(torch.device(device))
        for objective in (self.objective, self.test_objective):
            move(objective, torch.device(device))
            if isinstance(objective, OutputLoss):
                move(objective.loss, torch.device(device))
        self._select_parameters()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_model_params"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._select_parameters()

    # Small print

    def _select_parameters(self) -> None:
        """Narrows what the base class believes to be the parameters to those in blocks."""
        every = dict(self.model.named_parameters())
        self._model_params = {name: every[name].detach() for name in self.blocks.shapes}
        self._n_parameters = self.blocks.n_parameters

    def _reader(self, data: Any) -> Reader:
        settings = (self.model_device, self.batch_size, self.progress)
        return Reader(data, self._engine, *settings, images=self.images)

    def _batch(self, x: Inputs, y: Tensor | None) -> Batch:
        """What a caller gave, checked, on the device."""
        if isinstance(x, Mapping) and y is not None:
            raise BatchError(
                "A mapping carries its own labels, so y must be None. Put the labels into the "
                "mapping, under the key that the objective reads."
            )
        if not isinstance(x, Mapping) and y is None:
            raise BatchError(
                "Inputs x came without labels y. Pass both (a mapping carries its own)."
            )
        return batch_to(self.images.by_sample(x if y is None else (x, y)), self.model_device)

    def _rows(self, batch: Batch, engine: GradientEngine | None = None) -> BlockVectors:
        """Gradients of the loss, or those that an engine computes."""
        pieces = list(split_batch(batch, self.batch_size))
        disable = not self.progress or len(pieces) == 1
        bar = tqdm(pieces, "gradients", leave=False, disable=disable)
        return concatenated([(engine or self._engine).rows(piece) for piece in bar])

    def _fitted(self) -> Fitted:
        if self._fit is None:
            raise NotFittedException(type(self))
        if self._fit.device != self.model_device:  # the model was moved by itself
            self._fit = self._fit.to(self.model_device)
        return self._fit


def checked_mode(mode: InfluenceMode | str) -> InfluenceMode:
    """The mode by its name; pyDVL's own error where there is none."""
    try:
        return InfluenceMode(mode)
    except ValueError:
        raise UnsupportedInfluenceModeException(mode) from None
