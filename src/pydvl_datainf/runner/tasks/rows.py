"""The rows of training samples, from memory or from the store."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from pydvl_datainf.inverse.method import Method
from pydvl_datainf.results.half_precision import decode
from pydvl_datainf.results.row_sets import SCORED, RowSet
from pydvl_datainf.runner.sizing import DECODED_SHARE
from pydvl_datainf.runner.tasks.context import Context, device_of
from pydvl_datainf.runner.tasks.gradients import new_rows
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors

Chunks: TypeAlias = Callable[[], Iterable[Tensor]]
"""Starts a pass over the rows of a block, in pieces."""

Halves = tuple[Tensor, Tensor]
"""Rows in half precision of some samples, (r, d), and their scales, (r, blocks)."""


class PieceRows:
    """The rows of all training samples in a piece of blocks, block by block.

    Halves ones are read once where they can be held, and otherwise each time.

    Args:
        context: of the run.
        inputs: the model and the data.
        p: which piece.
        rows: which rows.
    """

    def __init__(self, context: Context, inputs: Inputs | None, p: int, rows: RowSet = SCORED):
        self.context, self.inputs, self.p, self.rows = context, inputs, p, rows
        spec, plan = context.spec, context.spec.plan
        self._n = rows.each * plan.n
        self._held: Halves | None = None
        self._outside: Tensor | None = None
        if plan.rows == "zarr" and 2 * spec.n_rows * plan.pieces[p][1] <= plan.held:
            memory = context.memory(rows.folder, (self._n, plan.pieces[p][1]), torch.float16)
            self._held = read_stored(context, p, slice(0, plan.n), rows, memory)

    def of_block(self, block: str) -> Chunks:
        """The rows of a block, in pieces; decoded once where there is room for all of them.

        Args:
            block: of the piece.

        Returns:
            Starts a pass over rows, (b, d_l): those of all training samples, in their order where
            each has one.
        """
        width = self.context.spec.widths[block]
        if not self._is_decoded_once(width):
            return partial(self._chunks, block)
        what, dtype = f"{self.rows.folder} decoded", getattr(torch, self.context.spec.precision)
        shape, device = (self._n, width), device_of(self.inputs)
        chunks = list(self._chunks(block, self.context.memory(what, shape, dtype, device)))
        return lambda: chunks

    def weighed(self, block: str, method: Method, chunks: Chunks) -> Chunks:
        """What the solvers of a method are fed in place of the rows of a block.

        Args:
            block: of the piece.
            method: of the block.
            chunks: its rows.

        Returns:
            They themselves, but where they are compressed.
        """
        if self.context.spec.compression is None:
            return chunks
        b, λ = list(self.context.spec.piece(self.p)).index(block), self.context.damping[block]
        outside = self._outside_norms()[:, b]

        def fed() -> Iterator[Tensor]:
            done = 0
            for C in chunks():
                yield method.weighed(C, outside[done : done + len(C)].to(C.device), λ)
                done += len(C)

        return fed

    def _outside_norms(self) -> Tensor:
        """‖g‖² − ‖c‖² of all training samples, in the blocks of the piece, (n, blocks)."""
        if self._outside is None:
            blocks, tiles = self.context.spec.blocks(self.p), self.context.spec.plan.train
            read = (self.context.read_rows("outside_norms", tile)[:, blocks] for tile in tiles)
            self._outside = torch.cat([torch.tensor(part) for part in read])
        return self._outside

    def _is_decoded_once(self, width: int) -> bool:
        spec, plan = self.context.spec, self.context.spec.plan
        return plan.rows == "zarr" and 8 * spec.n_rows * width <= plan.held // DECODED_SHARE

    def _chunks(self, block: str, into: Tensor | None = None) -> Iterator[Tensor]:
        context, tiles = self.context, self.context.spec.plan.train
        if context.spec.plan.rows != "zarr":
            for j in range(len(tiles)):
                kept = kept_rows(context, self.inputs, j, self.rows)
                yield from (rows[block] for _, rows in kept)
            return
        for tile in tiles if self._held is None else [slice(0, context.spec.plan.n)]:
            stored = self._held or read_stored(context, self.p, tile, self.rows)
            out = None if into is None else into[self.rows.of(tile)]
            for _, G in _decoded(context, self.inputs, self.p, stored, block, out):
                yield G


def tile_rows(
    context: Context, inputs: Inputs | None, j: int, of: RowSet = SCORED
) -> Iterator[tuple[slice, BlockVectors]]:
    """The rows of a training tile in all blocks: from memory, the store, or computed.

    Args:
        context: of the run.
        inputs: the model and the data.
        j: which tile.
        of: which rows.

    Yields:
        From which sample of the tile to which, and their rows; stored ones in the dtype of what
        the inverse makes of them.
    """
    if context.spec.plan.rows != "zarr":
        yield from kept_rows(context, inputs, j, of)
        return
    pieces = range(len(context.spec.plan.pieces))
    parts = [
        (block, _decoded(context, inputs, p, stored, block))
        for p in pieces
        for stored in [read_stored(context, p, context.spec.plan.train[j], of)]
        for block in context.spec.piece(p)
    ]
    for found in zip(*(rows for _, rows in parts), strict=True):
        names = (block for block, _ in parts)
        rows = ((name, G) for name, (_, G) in zip(names, found, strict=True))
        yield found[0][0], OrderedDict(rows)


def kept_rows(
    context: Context, inputs: Inputs | None, j: int, of: RowSet = SCORED
) -> Iterator[tuple[slice, BlockVectors]]:
    """The rows of a tile from this process's memory, or computed."""
    if (of, j) not in context.kept:
        assert inputs is not None  # without a model there are stored rows
        yield from new_rows(j, context, inputs, of)
        return
    done = 0
    for rows in context.kept[of, j]:
        length = len(next(iter(rows.values())))
        yield slice(done, done + length), rows
        done += length


def read_stored(
    context: Context, p: int, samples: slice, of: RowSet = SCORED, memory: Tensor | None = None
) -> Halves:
    """The rows of some training samples in a piece of blocks, as they are in the store.

    Args:
        context: of the run.
        p: the piece.
        samples: from which to which.
        of: which rows.
        memory: for them; None = new.

    Returns:
        Rows in half precision, if possible in that memory, and their scales.
    """
    rows = of.of(samples)
    if memory is None:
        width = context.spec.plan.pieces[p][1]
        memory = torch.empty(rows.stop - rows.start, width, dtype=torch.float16)
    halves = context.read_rows(of.name(p), rows, memory.numpy())
    scales = context.read_rows(of.scales, rows)[:, context.spec.blocks(p)]
    return torch.from_numpy(halves), torch.from_numpy(scales).clone()


def _decoded(
    context: Context,
    inputs: Inputs | None,
    p: int,
    stored: Halves,
    block: str,
    into: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    halves, scales = stored
    spec, device = context.spec, device_of(inputs)
    columns, b = spec.columns_in(p, block), list(spec.piece(p)).index(block)
    for start in range(0, len(halves), spec.plan.chunk):
        place = slice(start, min(start + spec.plan.chunk, len(halves)))
        part, lengths = halves[place, columns].to(device), scales[place, b].to(device)
        if into is None:
            out = torch.empty_like(part, dtype=getattr(torch, spec.precision))
        else:
            out = into[place]
        yield place, decode(part, lengths, out)
