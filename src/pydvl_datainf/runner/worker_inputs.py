"""What every process of a run is given: the influence model, and the test and training data."""

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import cloudpickle
import torch
from torch import Tensor

from pydvl_datainf.batches import as_arguments, slice_batch
from pydvl_datainf.devices import devices_of
from pydvl_datainf.errors import ModelError, NonFiniteError
from pydvl_datainf.fingerprint import fingerprint
from pydvl_datainf.gradients.layer_tokens import linear_blocks_of
from pydvl_datainf.influence import BlockwiseInfluence, EkfacInfluence, EnsembleInfluence
from pydvl_datainf.influence.sample_rows import SampleRows
from pydvl_datainf.inverse.damping import SHARE
from pydvl_datainf.inverse.ekfac import Ekfac
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.inverse.methods import METHODS, method_entries
from pydvl_datainf.objectives.description import described
from pydvl_datainf.results.arrays import CURVATURE
from pydvl_datainf.results.record import PRECONDITIONER
from pydvl_datainf.runner.batched_data import BatchedData

Built: TypeAlias = BlockwiseInfluence | Callable[[], BlockwiseInfluence]


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of an influence model without having it.

    Args:
        members: for each block the names of its parameters.
        widths: d_l of each block.
        dtype: of gradients and scores, by NumPy's name.
        fixed_damping: λ of the blocks that have one.
        n_samples: training samples that it was fitted on, if it was.
        batch_size: the largest number of samples in one gradient computation, if it has one.
        objective: in words.
        model: a checksum of each parameter and buffer.
        method: of the inverse.
        damping_scale: what λ that are chosen automatically are multiplied by.
        layers: for EK-FAC, of each block that is a linear layer its outputs, inputs, and whether it
            has both weight and bias.
        test_objective: in words, where test samples have one of their own.
        curvature: what tells the rows that the inverse is made of, where they are not those of the
            gradients, with their number for each training sample as "rows".
        preconditioner: what tells the coordinates of all rows, where they are an optimizer's.
        linear: of each block that is a linear layer, or a convolution without groups, with its
            weight: outputs, inputs, and whether it has a bias too. No part of the fingerprint.
    """

    members: Mapping[str, tuple[str, ...]]
    widths: Mapping[str, int]
    dtype: str
    fixed_damping: Mapping[str, float]
    n_samples: int | None
    batch_size: int | None
    objective: str
    model: Mapping[str, int]
    method: Method
    damping_scale: float = 1.0
    layers: Mapping[str, tuple[int, int, bool]] = field(default_factory=dict)
    test_objective: str | None = None
    curvature: Mapping[str, Any] = field(default_factory=dict)
    preconditioner: Mapping[str, Any] = field(default_factory=dict)
    linear: Mapping[str, tuple[int, int, bool]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes two influence models the same, as JSON holds it."""
        rule = f"{SHARE} of mean square"
        if self.damping_scale != 1:
            rule += f", times {self.damping_scale!r}"
        layers = {block: list(layer) for block, layer in self.layers.items()}
        return (
            method_entries(self.method)
            | ({"layers": layers} if layers else {})
            | ({CURVATURE: dict(self.curvature)} if self.curvature else {})
            | ({PRECONDITIONER: dict(self.preconditioner)} if self.preconditioner else {})
            | {
                "objective": self.objective,
                "dtype": self.dtype,
                "model": dict(self.model),
                "blocks": {block: list(names) for block, names in self.members.items()},
                "damping": {block: self.fixed_damping.get(block, rule) for block in self.members},
            }
        )


class Inputs:
    """The influence model and the data. It is sent to each process once.

    Args:
        influence: the model, or a picklable callable without arguments that builds it, which is
            then run once in each process and never sent itself.
        test: the test data.
        train: the training data; None where its rows are in a store.
    """

    def __init__(self, influence: Built, test: BatchedData, train: BatchedData | None):
        self.test = test
        self.train = train
        self._given = influence
        self._saved: bytes | None = None
        self._built: BlockwiseInfluence | None = None
        self._n_samples: int | None = None

    @property
    def influence(self) -> BlockwiseInfluence:
        """The model, built or unpacked on first use, in a copy that holds no rows.

        Raises:
            ModelError: if a builder returned something else, or it is an ensemble.
        """
        if self._built is None:
            made = self._given if self._saved is None else _loaded(self._saved)
            _check_single(made)
            if not isinstance(made, BlockwiseInfluence):
                made = made()
            _check_single(made)
            if not isinstance(made, BlockwiseInfluence):
                raise ModelError(
                    f"The influence builder returned a {type(made).__name__}. Pass a "
                    "DataInfInfluence, or a function without arguments that returns one."
                )
            if made.inverse.name not in METHODS:
                raise ModelError(
                    f"A run knows the inverses {', '.join(METHODS)}, and not the "
                    f"'{made.inverse.name}' of this {type(made).__name__}. Call its influences."
                )
            if made.is_fitted:
                made.check_unchanged()
                self._n_samples = made.n_samples
            self._built = made.unfitted()
        return self._built

    @property
    def influence_of_layers(self) -> EkfacInfluence:
        """The model, where its method is EK-FAC."""
        assert isinstance(self.influence, EkfacInfluence)  # the run has layers
        return self.influence

    def check_sendable(self) -> None:
        """Checks that other processes can have the model.

        Raises:
            ModelError: if it is spread over several devices, and not built where it is needed.
        """
        given = self._given
        if isinstance(given, BlockwiseInfluence) and len(devices_of(given.model)) > 1:
            raise ModelError(
                "A model that is spread over several devices cannot be sent to other processes. "
                "Leave out n_jobs and client, or pass a function that builds it in each of them."
            )

    def describe(self) -> Description:
        """What the client must know of the model."""
        influence = self.influence
        widths, method = influence.blocks.widths, influence.inverse
        layers = influence.layers if isinstance(influence, EkfacInfluence) else {}
        if layers:
            method = Ekfac(exact_width=max([0, *(widths[b] for b in widths if b not in layers)]))
        if influence.test_objective is not None and len(self.test):
            self._try_test_objective(influence)
        return Description(
            members=influence.blocks.members,
            widths=widths,
            dtype=str(influence.dtype).removeprefix("torch."),
            fixed_damping=influence.fixed_damping,
            damping_scale=influence.damping_scale,
            n_samples=self._n_samples,
            batch_size=influence.batch_size,
            objective=described(influence.objective),
            model=fingerprint(influence.model),
            method=method,
            layers={block: (*layer.shape, layer.has_both) for block, layer in layers.items()},
            test_objective=described(influence.test_objective)
            if influence.test_objective
            else None,
            curvature=self._curvature(influence),
            preconditioner=influence.preconditioner.told(influence.blocks)
            if influence.preconditioner
            else {},
            linear={
                block: (*layer.shape, layer.has_both)
                for block, layer in linear_blocks_of(influence).items()
            },
        )

    def _curvature(self, influence: BlockwiseInfluence) -> Mapping[str, Any]:
        """What tells the rows of the inverse; how many there are follows from a sample."""
        data, rows = self.test if self.train is None else self.train, influence.sample_rows
        if rows.curvature is None or not len(data):  # which is refused later
            return {}
        return rows.curvature.settings(rows.batch(*_first_sample(rows, data)))

    def _try_test_objective(self, influence: BlockwiseInfluence) -> None:
        """Finds early that it does not fit the model or the data: test gradients come late."""
        with suppress(NonFiniteError):  # which is told later, with the sample's id
            rows = influence.sample_rows
            rows.of(rows.batch(*_first_sample(rows, self.test)), rows.test_engine)

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._given, BlockwiseInfluence):
            # A CUDA model is unpacked on the device of the process that receives it. The bytes are
            # kept: a worker passes them on while its own copy of the model is at work.
            self._saved = self._saved or _saved(self.influence)
        given = None if self._saved else self._given
        state = vars(self) | {"_built": None, "_given": given}
        cuda: Any = torch.cuda  # is_initialized has no types
        if cuda.is_initialized():  # otherwise data on a card wants the card of that number
            data = {"test": state.pop("test"), "train": state.pop("train")}
            state["data"] = _saved(data)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        data = _loaded(state.pop("data")) if "data" in state else {}
        vars(self).update(state | data)


def _first_sample(rows: SampleRows, data: BatchedData) -> tuple[Any, Tensor | None]:
    return as_arguments(slice_batch(rows.images.by_sample(data.read(0)), 0, 1))


def _saved(what: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer, pickle_module=cloudpickle)
    return buffer.getvalue()


def _loaded(saved: bytes) -> Any:
    return torch.load(io.BytesIO(saved), map_location=_own_device, weights_only=False)


def _own_device(storage: Any, location: str) -> Any:
    """This process's current CUDA device, for what was on any of them."""
    if location.startswith("cuda") and torch.cuda.is_available():
        return storage.cuda(torch.cuda.current_device())
    return storage


def _check_single(influence: Any) -> None:
    if isinstance(influence, EnsembleInfluence):
        raise ModelError(
            "A run has one inverse, and this is an ensemble. Make a run of each member with "
            "run_influences, and add these with sum_runs(runs, store, weights)."
        )
