"""The pyDVL face: a `TorchInfluenceFunctionModel` with an inverse for each block."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, cast, overload

import torch
from pydvl.influence.torch.influence_function_model import TorchInfluenceFunctionModel
from pydvl.influence.types import InfluenceMode
from pydvl.utils.exceptions import NotFittedException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pydvl_datainf.batches import (
    Batch,
    as_batches,
    batch_length,
    split_batch,
)
from pydvl_datainf.blocks import Blocks, BlockStructure
from pydvl_datainf.errors import BatchError
from pydvl_datainf.gradients import (
    AdamPreconditioner,
    Gradients,
    gradient_engine,
)
from pydvl_datainf.gradients.by_length import by_length
from pydvl_datainf.gradients.losses import LossEngine
from pydvl_datainf.gradients.perturbation import perturbation_rows
from pydvl_datainf.gradients.relabelled import GaussNewtonEngine, Labels
from pydvl_datainf.gradients.sources import Reader, RowsKept, has_fixed_order
from pydvl_datainf.gradients.supported import (
    check_model,
    check_movable,
    preserved_rng,
    rows_dtype,
)
from pydvl_datainf.influence.arguments import (
    Curvature,
    Damping,
    Inputs,
    Loss,
    check_settings,
    checked_mode,
)
from pydvl_datainf.influence.fitted import Fitted, check_order
from pydvl_datainf.influence.fitted_samples import (
    check_multiples,
    forms_of,
    scores_on_fitted,
    scores_on_fitted_by_block,
    sweep,
)
from pydvl_datainf.influence.fitting import read_fitted
from pydvl_datainf.influence.sample_rows import SampleRows
from pydvl_datainf.influence.scores import added_scores, scores_by_block
from pydvl_datainf.inverse.compression import Rank, compression_of
from pydvl_datainf.inverse.damping import given_damping, given_scale
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.objectives import ImageLayout, as_objective
from pydvl_datainf.objectives.moving import move
from pydvl_datainf.vectors import BlockVectors, concatenated, length, products


class BlockwiseInfluence(TorchInfluenceFunctionModel):
    """Influence functions with an inverse for each block of parameters, fed by rows of gradients.

    What `DataInfInfluence` and its siblings, which tell the inverse, have in common. Arguments are
    those of `DataInfInfluence`.
    """

    inverse: Method
    """What takes the place of the inverse of each block."""

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
        curvature: Curvature = "empirical",
        labels: Labels = "auto",
        label_seed: int = 0,
        test_objective: Loss | None = None,
        rank: Rank | None = None,
        basis_sample: int | None = None,
        basis_seed: int = 0,
        sides: float | None = None,
        preconditioner: AdamPreconditioner | None = None,
    ):
        check_model(model)
        check_settings(batch_size, rows, curvature)
        self.inverse.check_rows(rows)
        self.blocks = Blocks.from_model(model, block_structure)
        self.objective = as_objective(loss)
        self.test_objective = None if test_objective is None else as_objective(test_objective)
        super().__init__(model, cast(Any, loss))
        self._select_parameters()
        self._given_damping = given_damping(regularization, self.blocks.names)
        self._damping_scale = given_scale(damping_scale, self._given_damping, self.blocks.names)
        self.compression = compression_of(rows, rank, basis_sample, basis_seed, sides)
        # Solvers that cannot be joined hold all rows, so there is nothing to save.
        self.rows_kept: RowsKept = "memory" if rows == "auto" and not self.inverse.joins else rows
        self.preconditioner = preconditioner
        engine = gradient_engine(gradients, model, self.objective, self.blocks, preconditioner)
        test_engine, of_inverse = engine, None
        if self.test_objective is not None:
            asked = (gradients, model, self.test_objective, self.blocks, preconditioner)
            test_engine = gradient_engine(*asked)
        if curvature == "gauss-newton":
            given = (engine, model, self.objective)
            of_inverse = GaussNewtonEngine(*given, labels, label_seed, max_tokens)
        self.sample_rows = SampleRows(
            model=model,
            images=ImageLayout.of(model),
            engine=by_length(engine, max_tokens),
            test_engine=by_length(test_engine, max_tokens),
            curvature=of_inverse,
            losses=by_length(LossEngine(model, self.objective), max_tokens),
            batch_size=batch_size,
            progress=progress,
        )
        self._fit: Fitted | None = None

    def __repr__(self) -> str:
        kind, model, n = type(self).__name__, type(self.model).__name__, self.n_samples
        size = f"{sum(self.blocks.widths.values()):,} parameters in {len(self.blocks.widths):,}"
        state = "not fitted" if n is None else f"fitted on {n:,} samples"
        return f"<{kind} of {model}: {size} blocks, {state}>"

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
        reader, engine = self.sample_rows.reader(data), self.sample_rows.curvature
        curvature = None if engine is None else replace(reader, engine=engine)
        self._fit = self._read(reader, curvature)
        return self

    def _read(self, reader: Reader, curvature: Reader | None) -> Fitted:
        settings = (self._given_damping, self.blocks.widths, self.dtype, self._damping_scale)
        keep = self.compression or self.rows_kept
        return read_fitted(reader, self.model, self.inverse, keep, *settings, curvature)

    def is_fitted_on(self, data: Iterable[Any]) -> bool:
        """Whether `fit` saw these samples, in this order, and the model is as it was then.

        Args:
            data: batches, whose lengths do not matter.

        Returns:
            False before `fit`, and where the loader that was fitted has no fixed order. Of data
            that is read again for each pass, what was seen by `fit` counts.
        """
        batches = map(self.sample_rows.images.by_sample, data)
        return self._fit is not None and self._fit.is_of(batches, self.model)

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
        given, widths = given_damping(regularization, self.blocks.names), self.blocks.widths
        scale = given_scale(damping_scale, given, widths)
        if self._fit is not None:
            if self._fit.norms is None and len(given) < len(widths):
                self.check_unchanged()  # before the rows are read for their norms
            self._fit = self._fitted().damped(given, widths, self.dtype, scale)
        self._given_damping, self._damping_scale = given, scale
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has succeeded."""
        return self._fit is not None

    @property
    def model_device(self) -> torch.device:
        """Where batches go and rows are: that of the model's first parameter now."""
        return next(self.model.parameters()).device

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
    def batch_size(self) -> int | None:
        """The largest number of samples in one computation; None = as given."""
        return self.sample_rows.batch_size

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
    def side_widths(self) -> dict[str, tuple[int, int]]:
        """How many outputs and inputs are kept of the blocks that have side bases.

        Raises:
            NotFittedException: before `fit`.
        """
        return self._fitted().side_widths

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
        self._fitted().check_unchanged(self.model)

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
        return added_scores(self._products(x_test, y_test, x, y, mode), self.dtype)

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
        return scores_by_block(self._products(x_test, y_test, x, y, mode), self.dtype)

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
        test = self.sample_rows.batch(x_test, y_test)
        if x is None and y is not None:
            raise BatchError(
                "Labels y came without inputs x. Pass both, or neither for the test data."
            )
        train = test if x is None else self.sample_rows.batch(x, y)
        fitted.check_unchanged(self.model)
        left = self.sample_rows.of(test, self.sample_rows.test_engine)
        if mode == InfluenceMode.Perturbation:
            return self._perturbations(fitted.factors(left), train)
        is_same = train is test and self.test_objective is None
        right = left if is_same else self.sample_rows.of(train)
        left, right = fitted.projected(left), fitted.projected(right)
        if batch_length(test) <= batch_length(train):
            return products(fitted.times(left), right)
        return products(left, fitted.times(right))

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
        fitted, rows = self._fitted(), self.sample_rows
        batch = rows.batch(x, y)
        fitted.check_unchanged(self.model)
        return fitted.factors(rows.of(batch, rows.test_engine))

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
        return added_scores(self._from_factors(vectors, x, y, mode), self.dtype)

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
        return scores_by_block(self._from_factors(z_test_factors, x, y, mode), self.dtype)

    def _from_factors(
        self,
        z_test_factors: Mapping[str, Tensor],
        x: Inputs,
        y: Tensor | None,
        mode: InfluenceMode | str,
    ) -> BlockVectors:
        """Influences from factors, in the wider dtype of factors and rows."""
        fitted, mode = self._fitted(), checked_mode(mode)
        self.blocks.check_vectors(z_test_factors)
        batch = self.sample_rows.batch(x, y)
        fitted.check_unchanged(self.model)
        factors = {b: f.to(fitted.device) for b, f in z_test_factors.items()}
        if mode == InfluenceMode.Perturbation:
            return self._perturbations(factors, batch)
        return products(factors, self.sample_rows.of(batch))

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
        return self.sample_rows.of(self.sample_rows.batch(x, y))

    def gradients_with_losses_by_block(
        self, x: Inputs, y: Tensor | None = None
    ) -> "OrderedDict[str, Tensor]":
        """As `loss_gradients_by_block`, with the losses, which the same passes give.

        Returns:
            For each block gradients as rows, shape (B, d_l), and under `LOSS` the losses, (B, 1).
        """
        return self.sample_rows.with_losses(self.sample_rows.batch(x, y))

    def test_gradients_by_block(
        self, x: Inputs, y: Tensor | None = None
    ) -> "OrderedDict[str, Tensor]":
        """As `loss_gradients_by_block`, but of the `test_objective` where there is one.

        Returns:
            For each block gradients as rows, shape (B, d_l).
        """
        rows = self.sample_rows
        return rows.of(rows.batch(x, y), rows.test_engine)

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
        return self.sample_rows.losses_of(data).to(self.dtype)

    # Influences of the fitted data, from its rows

    def training_gradients_by_block(self) -> "Iterator[OrderedDict[str, Tensor]]":
        """The gradients of the fitted samples, chunk by chunk: as kept, or computed again.

        Of compressed rows it is their part in the bases.

        Yields:
            For each block gradients as rows, shape (b, d_l), in the order of the training loader.
        """
        fitted = self._fitted()
        fitted.check_unchanged(self.model)
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
        factors = fitted.times(self._asked(fitted, x_test, y_test))
        score = scores_on_fitted_by_block if by_block else scores_on_fitted
        return score(fitted, factors, self.dtype)

    def _asked(self, fitted: Fitted, x_test: Inputs, y_test: Tensor | None) -> BlockVectors:
        """Test gradients, as the rows of the fitted samples are."""
        check_order(fitted.has_fixed_order)
        rows, batch = self.sample_rows, self.sample_rows.batch(x_test, y_test)
        fitted.check_unchanged(self.model)
        return fitted.projected(rows.of(batch, rows.test_engine))

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
        multiples = check_multiples(fitted, scales, self.dtype)
        vectors = self._asked(fitted, x_test, y_test)
        found = scores_on_fitted(fitted, sweep(fitted, vectors, multiples), self.dtype)
        return dict(zip(scales, torch.split(found, length(vectors)), strict=True))

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
        fitted.check_unchanged(self.model)
        with preserved_rng(fitted.device):
            check_order(fitted.has_fixed_order if data is None else has_fixed_order(data))
            if data is None:
                own = fitted.source.chunks()
            else:
                own = map(fitted.projected, self.sample_rows.reader(as_batches(data)).rows())
            forms = forms_of(fitted, own)
        return (scores_by_block if by_block else added_scores)(forms, self.dtype)

    # What pyDVL's base class asks for

    def _solve_hvp(self, rhs: Tensor) -> Tensor:
        return self.blocks.flatten(self._fitted().factors(self.blocks.unflatten(rhs)))

    def _loss_grad(self, x: Inputs, y: Tensor | None = None) -> Tensor:
        return self.loss_gradients(x, y)

    def to(self, device: torch.device | str) -> Self:
        """Moves the model, the fitted rows, and what the loss holds.

        Args:
            device: where to.

        Returns:
            The instance itself.
        """
        check_movable(self.model)
        super().to(torch.device(device))
        move(self.objective, torch.device(device))
        move(self.test_objective, torch.device(device))
        self._select_parameters()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_model_params"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._select_parameters()

    def _select_parameters(self) -> None:
        """Narrows what the base class believes to be the parameters to those in blocks."""
        every = dict(self.model.named_parameters())
        self._model_params = {name: every[name].detach() for name in self.blocks.shapes}
        self._n_parameters = self.blocks.n_parameters

    def _perturbations(self, factors: Mapping[str, Tensor], batch: Batch) -> BlockVectors:
        if self.preconditioner is not None:
            factors = self.preconditioner.times(factors, self.blocks)
        # As what they are multiplied with: a graph of the model.
        narrow = scores_by_block(factors, self.dtype)
        pieces = [
            perturbation_rows(self.model, self.objective, self.blocks, narrow, piece)
            for piece in split_batch(batch, self.sample_rows.batch_size)
        ]
        return concatenated(pieces, dim=1)

    def _fitted(self) -> Fitted:
        if self._fit is None:
            raise NotFittedException(type(self))
        if self._fit.device != self.model_device:  # the model was moved by itself
            self._fit = self._fit.to(self.model_device)
        return self._fit
