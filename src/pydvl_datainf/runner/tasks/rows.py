"""The rows of training samples, from memory or from the store."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from pydvl_datainf.results.half_precision import decoded
from pydvl_datainf.results.layout import rows_name
from pydvl_datainf.runner.sizing import DECODED_SHARE
from pydvl_datainf.runner.tasks.context import Context, device_of
from pydvl_datainf.runner.tasks.gradients import new_rows
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors

Chunks: TypeAlias = Callable[[], Iterable[Tensor]]
"""Starts a pass over the rows of a block, in pieces."""

Stored = tuple[Tensor, Tensor]
"""Rows in half precision of a tile, (r, d), and their scales, (r, blocks)."""


class PieceRows:
    """The rows of all training samples in a piece of blocks, block by block.

    Stored ones are read once where they can be held, and otherwise each time.

    Args:
        context: of the run.
        inputs: the model and the data.
        p: which piece.
    """

    def __init__(self, context: Context, inputs: Inputs | None, p: int):
        self.context, self.inputs, self.p = context, inputs, p
        plan = context.spec.plan
        self._held: list[Stored] | None = None
        if plan.rows == "zarr" and 2 * plan.n * plan.pieces[p][1] <= plan.held:
            self._held = [read_stored(context, p, j) for j in range(len(plan.train))]

    def of_block(self, block: str) -> Chunks:
        """The rows of a block, in pieces; decoded once where there is room for all of them.

        Args:
            block: of the piece.

        Returns:
            Starts a pass over rows, (b, d_l): those of all training samples, in their order.
        """
        plan, width = self.context.spec.plan, self.context.spec.widths[block]
        if plan.rows == "zarr" and 8 * plan.n * width <= plan.held // DECODED_SHARE:
            decoded = list(self._chunks(block))
            return lambda: decoded
        return partial(self._chunks, block)

    def _chunks(self, block: str) -> Iterator[Tensor]:
        spec = self.context.spec
        for j in range(len(spec.plan.train)):
            if spec.plan.rows != "zarr":
                yield from (rows[block] for _, rows in kept_rows(self.context, self.inputs, j))
                continue
            stored = self._held[j] if self._held else read_stored(self.context, self.p, j)
            for _, G in _decoded(self.context, self.inputs, self.p, stored, block):
                yield G


def tile_rows(
    context: Context, inputs: Inputs | None, j: int
) -> Iterator[tuple[slice, BlockVectors]]:
    """The rows of a training tile in all blocks: from memory, the store, or computed.

    Args:
        context: of the run.
        inputs: the model and the data.
        j: which tile.

    Yields:
        From which sample of the tile to which, and their rows; stored ones in the dtype of what
        the inverse makes of them.
    """
    if context.spec.plan.rows != "zarr":
        yield from kept_rows(context, inputs, j)
        return
    pieces = range(len(context.spec.plan.pieces))
    parts = [
        (block, _decoded(context, inputs, p, stored, block))
        for p in pieces
        for stored in [read_stored(context, p, j)]
        for block in context.spec.piece(p)
    ]
    for found in zip(*(rows for _, rows in parts), strict=True):
        names = (block for block, _ in parts)
        rows = ((name, G) for name, (_, G) in zip(names, found, strict=True))
        yield found[0][0], OrderedDict(rows)


def kept_rows(
    context: Context, inputs: Inputs | None, j: int
) -> Iterator[tuple[slice, BlockVectors]]:
    """The rows of a tile from this process's memory, or computed."""
    if j not in context.kept:
        assert inputs is not None  # without a model there are stored rows
        yield from new_rows(j, context, inputs)
        return
    done = 0
    for rows in context.kept[j]:
        length = len(next(iter(rows.values())))
        yield slice(done, done + length), rows
        done += length


def read_stored(context: Context, p: int, j: int) -> Stored:
    """The rows of a tile in a piece of blocks, as they are in the store."""
    tile = context.spec.plan.train[j]
    halves = context.read_rows(rows_name(p), tile)
    scales = context.read_rows("row_scales", tile)[:, context.spec.blocks(p)]
    return torch.from_numpy(halves), torch.from_numpy(scales).clone()


def _decoded(
    context: Context, inputs: Inputs | None, p: int, stored: Stored, block: str
) -> Iterator[tuple[slice, Tensor]]:
    halves, scales = stored
    spec, device = context.spec, device_of(inputs)
    columns, b = spec.columns_in(p, block), list(spec.piece(p)).index(block)
    for start in range(0, len(halves), spec.plan.chunk):
        place = slice(start, min(start + spec.plan.chunk, len(halves)))
        part, lengths = halves[place, columns].to(device), scales[place, b].to(device)
        yield place, decoded(part, lengths, getattr(torch, spec.precision))
