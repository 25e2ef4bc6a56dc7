"""Sums of the influences of several models, each with its own inverse."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, overload

import torch
from pydvl.influence.base_influence_function_model import InfluenceFunctionModel
from pydvl.influence.types import InfluenceMode
from pydvl.utils.exceptions import NotFittedException
from torch import Tensor
from torch.utils.data import DataLoader

from pydvl_datainf.errors import BlockError, ModelError, SourceError
from pydvl_datainf.influence.arguments import Inputs
from pydvl_datainf.influence.base import BlockwiseInfluence
from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.objectives.description import described
from pydvl_datainf.sums import checked_weights, sum_name


class EnsembleInfluence(InfluenceFunctionModel[Tensor, DataLoader[Any]]):
    r"""The sum Σ_k w_k (influences of model k) over several influence models.

    The models are checkpoints of one training, weighted by their learning rates (TracIn: Pruthi et
    al., NeurIPS 2020), or come from trainings with several seeds. Each has its own gradients, λ and
    inverse, so methods may differ. Sums are taken in float64 in the order of the members.

    For large data and results that last, make a run of each member with `run_influences`, and add
    these with `sum_runs`.

    Args:
        influences: a `DataInfInfluence` or one of its siblings for each model, none or all of them
            fitted, on the same data. They are copied, models apart, and stay as they are.
        weights: w_k of each, not negative; None = 1 for each.

    Raises:
        PlanError: if there are no members, or the weights do not fit.
        ModelError: if a member is no influence model of this package, or has another objective or
            test objective than the first.
        SourceError: if members were fitted on different data, or only some were.

    Examples:
        >>> from torch import nn
        >>> from pydvl_datainf import DataInfInfluence
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> checkpoints = [nn.Linear(3, 2) for _ in range(3)]
        >>> members = [DataInfInfluence(model, nn.CrossEntropyLoss()) for model in checkpoints]
        >>> ensemble = EnsembleInfluence(members, weights=[0.1, 0.1, 0.01]).fit([(x, y)])
        >>> ensemble.influences(x[:4], y[:4], x, y).shape
        torch.Size([4, 20])
    """

    def __init__(
        self, influences: Sequence[BlockwiseInfluence], weights: Sequence[float] | None = None
    ):
        super().__init__()
        for influence in influences:
            if not isinstance(influence, BlockwiseInfluence):
                raise ModelError(
                    f"A member is a {type(influence).__name__}. Pass influence models such as "
                    "DataInfInfluence."
                )
        self.weights = tuple(checked_weights(weights, len(influences), "members"))
        self.members = tuple(copy.copy(influence) for influence in influences)
        self._check_same_question()
        self._check_same_data()

    def _check_same_question(self) -> None:
        told = [
            tuple(o and described(o) for o in (member.objective, member.test_objective))
            for member in self.members
        ]
        other = next((words for words in told if words != told[0]), None)
        if other is not None:
            raise ModelError(
                "The members do not ask the same, so their influences cannot be added: objective "
                f"and test objective are {told[0]} in the first, {other} in another. Give all of "
                "them the same loss and the same test_objective."
            )

    def _check_same_data(self) -> None:
        known = [member.fitted_data for member in self.members if member.fitted_data is not None]
        numbers = [member.n_samples for member in self.members]
        if None in numbers and any(numbers):
            raise SourceError(
                "Some members are fitted and some are not. Pass all of them unfitted and call fit, "
                "or all fitted on the same data."
            )
        if len(set(numbers)) > 1 or any(other != known[0] for other in known):
            raise SourceError(
                f"The members were fitted on different data, of {numbers} samples. Call fit, which "
                "fits all of them on the same."
            )

    # Fitting

    def fit(self, data: DataLoader[Any] | Iterable[Any]) -> Self:
        """Fits all members; each reads the data.

        Args:
            data: a DataLoader or another iterable of batches that can be read again.

        Returns:
            The fitted instance itself. It is unchanged if anything is raised.
        """
        self.members = tuple(copy.copy(member).fit(data) for member in self.members)
        return self

    def is_fitted_on(self, data: Iterable[Any]) -> bool:
        """Whether all members were fitted on these samples, in this order, and did not change."""
        batches = list(data)
        return all(member.is_fitted_on(batches) for member in self.members)

    @property
    def is_fitted(self) -> bool:
        """Whether all members are fitted."""
        return all(member.is_fitted for member in self.members)

    @property
    def n_samples(self) -> int | None:
        """How many training samples `fit` saw; None before."""
        return self.members[0].n_samples

    @property
    def n_parameters(self) -> int:
        """The width of factors: the parameters of all members together."""
        return sum(member.n_parameters for member in self.members)

    @property
    def is_thread_safe(self) -> bool:
        """No: models are watched while they compute."""
        return False

    @property
    def name(self) -> str:
        """What it computes, in short."""
        return sum_name(member.inverse.name for member in self.members)

    @property
    def dtype(self) -> torch.dtype:
        """That of influences: the widest of the members'."""
        wide = any(member.dtype == torch.float64 for member in self.members)
        return torch.float64 if wide else torch.float32

    @property
    def damping(self) -> list[dict[str, float]]:
        """λ of each block of each member."""
        return [member.damping for member in self.members]

    def to(self, device: torch.device | str) -> Self:
        """Moves all members."""
        for member in self.members:
            member.to(device)
        return self

    # Influences

    def influences(
        self,
        x_test: Inputs,
        y_test: Tensor | None = None,
        x: Inputs | None = None,
        y: Tensor | None = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> Tensor:
        """Computes Σ_k w_k (influences of member k); arguments as of `DataInfInfluence`.

        Args:
            x_test: test inputs (m, ...), or a mapping that carries its labels.
            y_test: test targets (m, ...); None with a mapping.
            x: training inputs (b, ...) or a mapping; None = the test samples themselves.
            y: training targets (b, ...); None with a mapping.
            mode: "up" for influences, "perturbation" for their derivative by x.

        Returns:
            Influences, shape (m, b); in perturbation mode (m, b, *x.shape[1:]).
        """
        return self._sum(lambda member: member.influences(x_test, y_test, x, y, mode))

    def influences_by_block(
        self,
        x_test: Inputs,
        y_test: Tensor | None = None,
        x: Inputs | None = None,
        y: Tensor | None = None,
        mode: InfluenceMode | str = InfluenceMode.Up,
    ) -> "OrderedDict[str, Tensor]":
        """Computes `influences`, with its arguments, block by block.

        Returns:
            For each block its influences; they add up to the whole.

        Raises:
            BlockError: if the members have different blocks.
        """
        self._check_same_blocks()
        return self._sums(lambda member: member.influences_by_block(x_test, y_test, x, y, mode))

    def influence_factors(self, x: Inputs, y: Tensor | None = None) -> Tensor:
        """Computes the damped inverse times the gradient of each sample, for each member.

        Args:
            x: inputs (B, ...), or a mapping that carries its labels.
            y: targets (B, ...); None with a mapping.

        Returns:
            The factors of all members side by side, without weights, (B, n_parameters).
        """
        self._check_fitted()
        device = self.members[0].model_device
        parts = [member.influence_factors(x, y).to(device) for member in self.members]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parts) else torch.float32
        return torch.cat([part.to(dtype) for part in parts], dim=1)

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
        """
        shape = tuple(z_test_factors.shape)
        if len(shape) != 2 or shape[1] != self.n_parameters:
            raise BlockError(
                f"The factors have shape {shape}; expected (m, {self.n_parameters}), as "
                "influence_factors of this ensemble gives them."
            )
        widths = [member.n_parameters for member in self.members]
        factors = iter(torch.split(z_test_factors, widths, dim=1))
        return self._sum(lambda member: member.influences_from_factors(next(factors), x, y, mode))

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
        """
        if by_block:
            self._check_same_blocks()
            return self._sums(lambda m: m.training_influences(x_test, y_test, by_block=True))
        return self._sum(lambda m: m.training_influences(x_test, y_test))

    @overload
    def self_influences(self, data: Any = None, *, by_block: Literal[False] = False) -> Tensor: ...
    @overload
    def self_influences(
        self, data: Any = None, *, by_block: Literal[True]
    ) -> "OrderedDict[str, Tensor]": ...
    def self_influences(
        self, data: Any = None, *, by_block: bool = False
    ) -> "Tensor | OrderedDict[str, Tensor]":
        """Computes the influence of each sample on itself, Σ_k w_k (that of member k).

        Args:
            data: a loader or a single batch; None = the fitted training data.
            by_block: whether to return each block's part instead of their sum.

        Returns:
            Self-influences, shape (n,), in the order of the data; or for each block such a vector.
        """
        if by_block:
            self._check_same_blocks()
            return self._sums(lambda member: member.self_influences(data, by_block=True))
        return self._sum(lambda member: member.self_influences(data))

    # The sum

    def _sum(self, ask: Callable[[BlockwiseInfluence], Tensor]) -> Tensor:
        """Σ_k w_k (what member k answers), rounded once."""
        return self._sums(lambda member: {"all together": ask(member)})["all together"]

    def _sums(
        self, ask: Callable[[BlockwiseInfluence], Mapping[str, Tensor]]
    ) -> "OrderedDict[str, Tensor]":
        self._check_fitted()
        device = self.members[0].model_device
        sums: OrderedDict[str, Tensor] = OrderedDict()
        for member, weight in zip(self.members, self.weights, strict=True):
            for block, part in ask(member).items():
                added = weight * part.to(device, torch.float64)
                sums[block] = sums[block] + added if block in sums else added
        rounded = OrderedDict((block, value.to(self.dtype)) for block, value in sums.items())
        check_finite(rounded)
        return rounded

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise NotFittedException(type(self))

    def _check_same_blocks(self) -> None:
        names = [member.block_names for member in self.members]
        if any(other != names[0] for other in names):
            raise BlockError(
                f"The members have different blocks: {names[0][:5]} and others. Leave out "
                "by_block, or give all members the same block structure."
            )

    # What pyDVL's base class asks for

    _influences = influences
    _influence_factors = influence_factors
