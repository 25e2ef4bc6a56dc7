"""What the tasks of a run share in one process: the store, damping, and gradients."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.batches import Batch, as_arguments, slice_batch
from pydvl_datainf.errors import ModelError, NonFiniteError, StoreError
from pydvl_datainf.fingerprint import differences, fingerprint
from pydvl_datainf.gradients.sided import small_rows
from pydvl_datainf.influence.sample_rows import SampleRows
from pydvl_datainf.inverse.coordinates import projected
from pydvl_datainf.inverse.sides import Sides
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.layout import basis_name, sides_name
from pydvl_datainf.results.row_sets import SCORED, RowSet
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import Stored
from pydvl_datainf.runner.batched_data import BatchedData, BatchIndex, Cut, cut_batches, read_again
from pydvl_datainf.runner.tasks.spec import RunSpec
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.terminal import some
from pydvl_datainf.vectors import BlockVectors

Made = TypeVar("Made")


@dataclass
class Context:
    """What the tasks of a run share in one process; what it keeps stays there.

    Args:
        spec: of the run.
        gradients: how many were computed here.
        kept: rows of training tiles, by their set and tile, where they stay in memory.
        held: what neighbouring tasks read, with what it is.
    """

    spec: RunSpec
    gradients: int = 0
    kept: dict[tuple[RowSet, int], list[BlockVectors]] = field(default_factory=dict)
    held: tuple[Any, Any] | None = None
    _task: Any = None
    _memory: dict[str, Tensor] = field(default_factory=dict)
    _batch: tuple[int, int, Batch] | None = None
    _is_checked: bool = False
    _bases: "BlockVectors | None" = None
    _packed: SampleRows | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(Context(self.spec))

    @cached_property
    def store(self) -> Store:
        """The store of the run."""
        return Store(self.spec.location, writer=self.spec.writer)

    @cached_property
    def rows_store(self) -> Stored:
        """The store of the training rows."""
        if self.spec.rows_location == self.spec.location:
            return self.store
        return Stored(self.spec.rows_location)

    @cached_property
    def damping(self) -> dict[str, float]:
        """λ of each block, from the store."""
        return dict(zip(self.spec.widths, self.store.read("damping").tolist(), strict=True))

    @cached_property
    def row_norms(self) -> Tensor:
        """The norm of each training row over all blocks, (n,), from the store: all are there."""
        tiles = self.spec.plan.train
        squares = (self.store.read("squared_norms", tile).sum(1) for tile in tiles)
        return torch.from_numpy(np.concatenate(list(squares))).sqrt()

    def computed(
        self,
        inputs: Inputs,
        data: BatchedData,
        index: BatchIndex,
        wanted: slice,
        rows: RowSet = SCORED,
    ) -> Iterator[tuple[slice, BlockVectors]]:
        """Computes gradients, a few samples at a time; of test samples as the rows are.

        Args:
            inputs: the model.
            data: batches.
            index: what the first look at them found.
            wanted: from which sample to which.
            rows: which of those of training samples.

        Yields:
            From which sample to which (counted within those that are wanted), and their rows; with
            the losses, under `LOSS`, beside the gradients of training samples.

        Raises:
            ModelError: if a gradient is not finite; names the sample.
        """

        def rows_of(given: Batch) -> BlockVectors:
            made = self.sample_rows(inputs)
            batch = made.batch(*as_arguments(given))
            if data is inputs.test:
                return self.projected(inputs, made.of(batch, made.test_engine))
            if rows != SCORED:
                return made.of(batch, made.curvature)
            return made.with_losses(batch)

        for place, made in self.each(inputs, data, index, wanted, rows_of):
            self.gradients += rows.each * (place.stop - place.start)
            yield place, made

    def each(
        self,
        inputs: Inputs,
        data: BatchedData,
        index: BatchIndex,
        wanted: slice,
        compute: Callable[[Batch], Made],
    ) -> Iterator[tuple[slice, Made]]:
        """Computes something of each of some samples, a few at a time.

        Args:
            inputs: the model.
            data: batches.
            index: what the first look at them found.
            wanted: from which sample to which.
            compute: makes it of a batch.

        Yields:
            From which sample to which (counted within those that are wanted), and what it made.

        Raises:
            ModelError: if something is not finite; names the sample.
        """
        done = 0
        self.check_model(inputs)
        for cut in cut_batches(index.lengths, wanted, self.spec.plan.step):
            batch = self.read_batch(inputs, data, index, cut)
            try:
                made = compute(batch)
            except NonFiniteError as error:
                side = "train" if data is inputs.train else "test"
                raise self._named(error, side, wanted.start + done) from error
            length = cut[2] - cut[1]
            yield slice(done, done + length), made
            done += length

    def sample_rows(self, inputs: Inputs) -> SampleRows:
        """What computes rows of samples; gradients are packed where there are side bases."""
        if not self.spec.side_blocks:
            return inputs.influence.sample_rows
        if self._packed is None:
            self._packed = inputs.influence.sample_rows.packed(self._sides(inputs))
        return self._packed

    def _sides(self, inputs: Inputs) -> dict[str, Sides]:
        """The side bases of the run of the rows."""
        assert self.spec.compression is not None  # rows are compressed
        layers, names, found = self.spec.compression.layers, list(self.spec.whole), {}
        for b, (o, a, i, k) in self.spec.side_shapes.items():
            flat = torch.tensor(self.read_rows(sides_name(b), ...), device=device_of(inputs))
            Q_o, Q_i = flat[: o * a].reshape(o, a), flat[o * a :].reshape(i, k)
            found[names[b]] = Sides(Q_o, Q_i, layers[names[b]][2])
        return found

    def projected(self, inputs: Inputs, rows: BlockVectors) -> BlockVectors:
        """Gradients, or packed ones, as the training rows are: whole, or their coordinates."""
        if self.spec.compression is None:
            return rows
        if self._bases is None:
            names = list(self.spec.widths)
            self._bases = OrderedDict(
                (names[b], torch.tensor(self.read_rows(basis_name(b), ...)))
                for b in self.spec.basis_shapes
            )
        device = device_of(inputs)
        self._bases = OrderedDict((block, B.to(device)) for block, B in self._bases.items())
        return projected(small_rows(rows, self.spec.side_blocks), self._bases)

    def check_model(self, inputs: Inputs) -> None:
        """Once in each process: a builder may build something else each time."""
        if self._is_checked:
            return
        other = differences(self.spec.model or {}, fingerprint(inputs.influence.model))
        if other:
            raise ModelError(
                f"The model of this process differs from that of the first one ({len(other)} "
                f"tensors: {some(other)}). An influence builder must build the same model "
                "every time: load its weights, or seed their initialisation."
            )
        self._is_checked = True

    def read_batch(self, inputs: Inputs, data: BatchedData, index: BatchIndex, cut: Cut) -> Batch:
        """Reads a part of a batch; a batch that is read in several parts is kept meanwhile."""
        batch, start, stop = cut
        if self._batch is None or self._batch[:2] != (id(data), batch):
            checked = inputs.influence.sample_rows.images.by_sample
            self._batch = id(data), batch, read_again(data, index, batch, checked)
        return slice_batch(self._batch[2], start, stop)

    def _named(self, error: NonFiniteError, side: str, first: int) -> ModelError:
        position, data = first + error.sample, "training" if side == "train" else "test"
        has_ids = side == "train" or self.spec.codes is None
        known = f" (id {self.store.read(side)[position]!r})" if has_ids else ""
        return ModelError(f"Position {position} of the {data} data{known}: {error}")

    def memory(
        self,
        what: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> Tensor:
        """The same memory in each of the tasks of a kind: new pages cost more than what goes there.

        Args:
            what: it is for.
            shape: of a matrix.
            dtype: of it.
            device: where it is; None = where programs run.

        Returns:
            The matrix, with whatever was there.
        """
        size = prod(shape)
        if what not in self._memory or len(self._memory[what]) < size:
            self._memory.pop(what, None)  # first: both would be there at once
            self._memory[what] = torch.empty(size, dtype=dtype, device=device or "cpu")
        return self._memory[what][:size].view(shape)

    def begin(self, task: Any) -> None:
        """Gives back the memory of tasks of another kind."""
        if task is not self._task:
            self._memory.clear()
        self._task = task

    def read_rows(self, name: str, where: Any, memory: Array | None = None) -> Array:
        """Reads from the store of the training rows, which may be another run's.

        Args:
            name: of the array.
            where: which part.
            memory: where to, if it is rows that lie in files as in memory.

        Returns:
            The values.

        Raises:
            StoreError: if that run was replaced meanwhile.
        """
        store, meant = self.rows_store, self.spec.rows_of
        values = store.read(name, where) if memory is None else store.read_into(memory, name, where)
        # Afterwards: the other run may be replaced at any time.
        if meant is not None and meant != store.attributes["fingerprint"]:
            raise StoreError(
                f"{store}, the store whose rows this run uses, was replaced meanwhile. Put the run "
                "that was there back, or query the one that is there now."
            )
        return values


def device_of(inputs: Inputs | None) -> torch.device:
    """Where a process computes."""
    return torch.device("cpu") if inputs is None else inputs.influence.model_device


def split(flat: Tensor, widths: Mapping[str, int]) -> BlockVectors:
    """Views of the blocks' columns of flat vectors (b, D)."""
    return OrderedDict(zip(widths, torch.split(flat, list(widths.values()), 1), strict=True))
