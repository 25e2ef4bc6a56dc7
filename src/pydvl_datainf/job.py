"""What the pieces of work of one run share in one process: rows, vectors and damping."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pydvl_datainf.arrays import WORK
from pydvl_datainf.batches import Batch, slice_batch
from pydvl_datainf.errors import ModelError, NonFiniteError, StoreError
from pydvl_datainf.fingerprint import differences, fingerprint
from pydvl_datainf.half import decoded, encoded
from pydvl_datainf.inputs import Inputs
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.methods import Inverse
from pydvl_datainf.plan import Piece, Plan, Tiling, pieces
from pydvl_datainf.samples import Samples, Survey, read_again
from pydvl_datainf.store import Array, Store
from pydvl_datainf.vectors import BlockVectors

VECTORS = f"{WORK}/vectors"


@dataclass
class Job:
    """What the pieces of work of one run share in one process.

    Args:
        plan: how the run is cut.
        location: of its store.
        rows_location: of the store that holds the training rows, where they are in one.
        widths: d_l of each block, in their order along a flat row.
        dtype: of rows and scores, by NumPy's name.
        inverse: of the blocks.
        test: what the first look at the test data found.
        train: the same of the training data; None where its rows are in a store.
        model: the checksums of the model that the run was described with.
        codes: for each test sample its group, where there are groups.
        by_block: whether each block has scores of its own.
        top_k: how many scores are kept at either end; None = all.
        writer: of the store, while it is this run's.
        rows_of: the fingerprint of the run whose rows are used, where it is another one.
    """

    plan: Plan
    location: Any
    rows_location: Any
    widths: Mapping[str, int]
    dtype: str
    inverse: Inverse
    test: Survey
    train: Survey | None = None
    model: Mapping[str, int] | None = None
    codes: tuple[int, ...] | None = None
    by_block: bool = False
    top_k: int | None = None
    writer: str | None = None
    rows_of: Any = None
    gradients: int = 0
    _is_checked: bool = False
    _store: Store | None = None
    _damping: dict[str, float] | None = None
    _held: tuple[str, int, Tensor] | None = None
    _batch: tuple[int, int, Batch] | None = None
    _kept: dict[int, list[BlockVectors]] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The store of the run, opened on first use."""
        if self._store is None:
            self._store = Store(self.location, writer=self.writer)
        return self._store

    @property
    def precision(self) -> str:
        """The dtype of factors and of what is added up for them, by NumPy's name."""
        return self.inverse.precision(self.dtype)

    @property
    def parts(self) -> Tiling:
        """The test samples, cut into parts, each of which adds to its groups by itself."""
        return Tiling(self.test.n, self.plan.part)

    @property
    def rows_store(self) -> Store:
        """The store of the training rows."""
        if self.rows_location == self.location:
            return self.store
        return Store(self.rows_location, read_only=True)

    @property
    def damping(self) -> dict[str, float]:
        """λ of each block, from the store."""
        if self._damping is None:
            self._damping = dict(zip(self.widths, self.store.read("damping").tolist(), strict=True))
        return self._damping

    def __getstate__(self) -> dict[str, Any]:
        own: dict[str, Any] = {
            "_is_checked": False,
            "_store": None,
            "_damping": None,
            "_held": None,
            "_batch": None,
            "_kept": {},
        }
        return vars(self) | own

    def blocks(self, flat: Tensor) -> BlockVectors:
        """Views of the blocks' columns of flat vectors (b, D)."""
        return OrderedDict(
            zip(self.widths, torch.split(flat, list(self.widths.values()), 1), strict=True)
        )

    # Gradients

    def computed(
        self, inputs: Inputs, samples: Samples, survey: Survey, wanted: slice
    ) -> Iterator[tuple[slice, BlockVectors]]:
        """Computes rows piece by piece.

        Args:
            inputs: the model.
            samples: the data.
            survey: what the first look at the data found.
            wanted: from which sample to which.

        Yields:
            From which sample to which (counted within those that are wanted), and their rows.

        Raises:
            ModelError: if a gradient is not finite; names the sample.
        """
        done = 0
        self._check_model(inputs)
        for piece in pieces(survey.lengths, wanted, self.plan.step):
            batch = self._read(inputs, samples, survey, piece)
            x, y = (batch, None) if isinstance(batch, Mapping) else batch
            try:
                rows = inputs.influence.loss_gradients_by_block(x, y)
            except NonFiniteError as error:
                side = "training" if samples is inputs.train else "test"
                raise self._named(error, side, wanted.start + done) from error
            length = piece[2] - piece[1]
            self.gradients += length
            yield slice(done, done + length), rows
            done += length

    def _check_model(self, inputs: Inputs) -> None:
        """Once in each process: a builder may build something else each time."""
        if self._is_checked:
            return
        other = differences(self.model or {}, fingerprint(inputs.influence.model))
        if other:
            raise ModelError(
                f"The model of this process differs from that of the first one ({len(other)} "
                f"tensors: {', '.join(other[:5])}). An influence builder must build the same model "
                "every time: load its weights, or seed their initialisation."
            )
        self._is_checked = True

    def _read(self, inputs: Inputs, samples: Samples, survey: Survey, piece: Piece) -> Batch:
        batch, start, stop = piece
        if self._batch is None or self._batch[:2] != (id(samples), batch):
            checked = inputs.influence.images.by_sample
            self._batch = id(samples), batch, read_again(samples, survey, batch, checked)
        return slice_batch(self._batch[2], start, stop)

    def _named(self, error: NonFiniteError, side: str, first: int) -> ModelError:
        position = first + error.sample
        name = "train" if side == "training" else "test"
        ids = self.store.read(name) if self.codes is None or name == "train" else None
        known = f" (id {ids[position]!r})" if ids is not None else ""
        return ModelError(f"Position {position} of the {side} data{known}: {error}")

    def rows(self, inputs: Inputs | None, tile: int) -> Iterator[tuple[slice, BlockVectors]]:
        """The rows of a training tile, piece by piece: from memory, the store, or computed.

        Args:
            inputs: the model and the data; None = the rows are in a store.
            tile: which.

        Yields:
            From which sample of the tile to which, and their rows; stored ones in the dtype of the
            factors.
        """
        if self.plan.rows == "zarr":
            yield from self._stored_rows(device_of(inputs), tile)
            return
        if tile not in self._kept:
            assert inputs is not None  # without a model there are stored rows
            yield from self.new_rows(inputs, tile, norms_too=False)
            return
        done = 0
        for rows in self._kept[tile]:
            length = len(next(iter(rows.values())))
            yield slice(done, done + length), rows
            done += length

    def new_rows(
        self, inputs: Inputs, tile: int, *, norms_too: bool
    ) -> Iterator[tuple[slice, BlockVectors]]:
        """Computes the rows of a tile, and at its end stores their norms and, if wanted, them.

        Args:
            inputs: the model and the data.
            tile: which.
            norms_too: store norms even where some are, which may be damaged.

        Yields:
            From which sample of the tile to which, and their rows.
        """
        assert inputs.train is not None  # rows of a query are stored
        assert self.train is not None
        wanted = self.plan.train[tile]
        kept: list[BlockVectors] = []
        norms, scales = [], []
        to_store = self.plan.rows == "zarr"
        length = wanted.stop - wanted.start if to_store else 0
        halves = torch.empty(length, self.plan.n_parameters, dtype=torch.float16)
        for place, rows in self.computed(inputs, inputs.train, self.train, wanted):
            norms.append(_columns([squared_norms(v) for v in rows.values()]))
            if self.plan.rows == "memory":
                kept.append(rows)
            if to_store:
                parts = [encoded(v) for v in rows.values()]
                for target, (h, _) in zip(self.blocks(halves[place]).values(), parts, strict=True):
                    target[:] = h
                scales.append(_columns([s for _, s in parts]))
            yield place, rows
        if norms_too or not self.store.has("squared_norms", (tile, 0)):
            self.store.write("squared_norms", wanted, torch.cat(norms).numpy())
        if kept:
            self._kept[tile] = kept
        if to_store:  # rows last: where they are, their scales are
            self.store.write("row_scales", wanted, torch.cat(scales).numpy())
            self.store.write("rows", wanted, halves.numpy())

    def block_rows(self, inputs: Inputs | None, block: str) -> Tensor:
        """The rows of one block of all training samples.

        Args:
            inputs: the model and the data; None = the rows are in a store.
            block: which.

        Returns:
            Gradients as rows, (n, d_l); stored ones in the dtype of the factors.
        """
        tiles = range(len(self.plan.train))
        if self.plan.rows == "zarr":
            device = device_of(inputs)
            return torch.cat([self._stored_block(device, tile, block) for tile in tiles])
        return torch.cat([rows[block] for tile in tiles for _, rows in self.rows(inputs, tile)])

    def _read_rows(self, name: str, where: Any) -> Array:
        values, store = self.rows_store.read(name, where), self.rows_store
        # Afterwards: the other run may be replaced at any time.
        if self.rows_of is not None and self.rows_of != store.attributes["fingerprint"]:
            raise StoreError(
                f"{store}, the store whose rows this run uses, was replaced meanwhile. Put the run "
                "that was there back, or query the one that is there now."
            )
        return values

    def _stored_block(self, device: torch.device, tile: int, block: str) -> Tensor:
        wanted, names = self.plan.train[tile], list(self.widths)
        b = names.index(block)
        start = sum(self.widths[name] for name in names[:b])
        columns = slice(start, start + self.widths[block])
        halves = torch.from_numpy(self._read_rows("rows", (wanted, columns)))
        scales = torch.from_numpy(self._read_rows("row_scales", wanted))[:, b]
        return decoded(halves.to(device), scales.to(device), getattr(torch, self.precision))

    def _stored_rows(self, device: torch.device, tile: int) -> Iterator[tuple[slice, BlockVectors]]:
        wanted = self.plan.train[tile]
        halves = torch.from_numpy(self._read_rows("rows", wanted))
        scales = torch.from_numpy(self._read_rows("row_scales", wanted))
        dtype = getattr(torch, self.precision)
        for start in range(0, len(halves), self.plan.step):
            place = slice(start, min(start + self.plan.step, len(halves)))
            parts = self.blocks(halves[place].to(device)).items()
            lengths = scales[place].to(device).unbind(1)
            yield (
                place,
                OrderedDict(
                    (block, decoded(h, s, dtype))
                    for (block, h), s in zip(parts, lengths, strict=True)
                ),
            )

    # Vectors of the queries, as flat matrices

    def read_matrix(self, name: str, queries: slice, inputs: Inputs) -> Tensor:
        """An array (m, D), or the sum over the parts of an array (parts, m, D), chunk by chunk."""
        array = self.store.array(name)
        device, dtype = inputs.influence.model_device, getattr(torch, self.precision)
        # In memory of torch's own, whose alignment does not change the bits of products.
        flat = torch.zeros(
            queries.stop - queries.start, self.plan.n_parameters, dtype=dtype, device=device
        )
        parts: list[tuple[int, ...]] = (
            [()] if array.ndim == 2 else [(p,) for p in range(array.shape[0])]
        )
        for rows, columns in self._chunks(queries):
            target = flat[rows.start - queries.start : rows.stop - queries.start, columns]
            for part in parts:
                read = self.store.read(name, (*part, rows, columns))
                target += torch.from_numpy(read).to(device)
        return flat

    def write_matrix(self, name: str, flat: Tensor, queries: slice, *part: int) -> None:
        """Writes into an array (m, D), or into a part of an array (parts, m, D), chunk by chunk."""
        for rows, columns in self._chunks(queries):
            values = flat[rows.start - queries.start : rows.stop - queries.start, columns]
            self.store.write(name, (*part, rows, columns), values.cpu().numpy())

    def _chunks(self, queries: slice) -> Iterator[tuple[slice, slice]]:
        """The chunks of a matrix of vectors; several at once would be copied at once."""
        for start in range(queries.start, queries.stop, self.plan.test_tile):
            rows = slice(start, min(start + self.plan.test_tile, queries.stop))
            for columns in Tiling(self.plan.n_parameters, self.plan.columns):
                yield rows, columns

    def vectors(self, inputs: Inputs, queries: slice) -> Tensor:
        """Gradients of queries, or mean gradients of groups of them, flat, (b, D)."""
        flat = self.read_matrix(VECTORS, queries, inputs)
        if self.codes is not None:
            counts = np.bincount(self.codes)[queries]
            flat /= torch.from_numpy(counts).to(flat)[:, None]
        return flat

    def release(self) -> None:
        """Forgets what is held, before another piece of work takes its place in memory."""
        self._held = None

    def held(self, name: str, q: int, inputs: Inputs) -> Tensor:
        """Vectors or factors of a group of queries, read once for neighbouring pieces of work."""
        if self._held is None or self._held[:2] != (name, q):
            self._held = None
            queries = self.plan.group(q)
            flat = (
                self.vectors(inputs, queries)
                if name == VECTORS
                else self.read_matrix(name, queries, inputs)
            )
            self._held = name, q, flat
        return self._held[2]


def device_of(inputs: Inputs | None) -> torch.device:
    """Where a process computes."""
    return torch.device("cpu") if inputs is None else inputs.influence.model_device


def _columns(columns: list[Tensor]) -> Tensor:
    return torch.stack(columns, 1).cpu()
