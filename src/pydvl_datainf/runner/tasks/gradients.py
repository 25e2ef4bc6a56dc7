"""Computes, encodes and writes gradients: rows of training tiles, and vectors of the queries."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.gradients.sided import whole_squares
from pydvl_datainf.inverse.coordinates import remainders
from pydvl_datainf.results.half_precision import encode
from pydvl_datainf.results.record import TRAINING_LOSS
from pydvl_datainf.results.row_sets import SCORED, RowSet
from pydvl_datainf.runner.tasks.bases import whole_rows
from pydvl_datainf.runner.tasks.context import Context, split
from pydvl_datainf.runner.tasks.matrices import vectors_name, write_matrix
from pydvl_datainf.runner.worker_inputs import Inputs
from pydvl_datainf.vectors import BlockVectors

IN_FLIGHT = 2
"""Steps whose rows wait to be encoded while the next are computed."""

TILES_IN_MEMORY = 2
"""Tiles in half precision: one is written while the next is encoded."""


def _now(function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)


def write_rows(item: tuple[RowSet, Sequence[int]], context: Context, inputs: Inputs) -> None:
    """The squared norms of some training tiles, and their rows where they are stored or kept.

    While the rows of the next step are computed, a thread encodes the last, and another one writes
    the tile before them.
    """
    rows, tiles = item
    with _aside(TILES_IN_MEMORY - 1) as written, _aside(IN_FLIGHT) as encoded:
        encoder = _Encoder(context, rows, written, norms_too=True)
        for tile in tiles:
            for _ in new_rows(tile, context, inputs, rows, encoder, encoded):
                pass


def new_rows(
    tile: int,
    context: Context,
    inputs: Inputs,
    of: RowSet = SCORED,
    encoder: "_Encoder | None" = None,
    call: Callable[..., None] = _now,
) -> Iterator[tuple[slice, BlockVectors]]:
    """Computes the rows of a tile; at its end stores norms and losses and, if wanted, the rows.

    Args:
        tile: which.
        context: of the run.
        inputs: the model and the data.
        of: which rows.
        encoder: stores them; None = one that leaves norms and losses that are there.
        call: calls a function with arguments, now or soon.

    Yields:
        From which sample of the tile to which, and their rows.
    """
    spec, wanted = context.spec, context.spec.plan.train[tile]
    assert inputs.train is not None  # rows of a query are stored
    assert spec.train is not None
    encoder = encoder or _Encoder(context, of)
    kept: list[BlockVectors] = []
    computed = context.computed(inputs, inputs.train, spec.train, wanted, of)
    if spec.compression is not None:
        computed = whole_rows(tile, context, inputs)
    for place, rows in computed:
        losses = rows.pop(LOSS, None)
        call(encoder.add, place, rows, context.projected(inputs, rows), losses)
        if spec.plan.rows == "memory":
            kept.append(rows)
        yield place, rows
    call(encoder.write, tile)
    if kept:
        context.kept[of, tile] = kept


@dataclass
class _Tile:
    """What is made of the rows of a tile, step by step.

    Args:
        halves: rows in half precision, of each piece; none where they are not stored.
        norms: squared norms, of each step.
        losses: of each step.
        scales: of each step.
        outside: what squared norms have outside of bases, of each step.
    """

    halves: list[Tensor]
    norms: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)
    outside: list[Tensor] = field(default_factory=list)


class _Encoder:
    """Norms and losses of a tile, and its rows in half precision where they are stored.

    Tile after tile, in the same memory.

    Args:
        context: of the run.
        of: which rows.
        call: calls a function that writes a tile, now or while the next one is encoded.
        norms_too: store norms and losses even where some are, which may be damaged.
    """

    def __init__(
        self,
        context: Context,
        of: RowSet,
        call: Callable[..., None] = _now,
        *,
        norms_too: bool = False,
    ):
        self.context, self.of, self.call, self.norms_too = context, of, call, norms_too
        rows = of.each * context.spec.plan.train_tile
        pieces = context.spec.plan.pieces if context.spec.plan.rows == "zarr" else ()
        self.memory = cycle(
            [
                context.memory(f"tile {k} {p}", (rows, width), torch.float16)
                for p, (_, width) in enumerate(pieces)
            ]
            for k in range(TILES_IN_MEMORY)
        )
        self.made = _Tile(next(self.memory))

    def add(
        self, place: slice, whole: BlockVectors, rows: BlockVectors, losses: Tensor | None
    ) -> None:
        """The rows of some samples of the tile, as they are stored, after those before them.

        Args:
            place: of the samples in the tile.
            whole: whole rows, or packed ones.
            rows: as they are stored.
            losses: of the samples, (b, 1), if they are known.
        """
        made = self.made
        if losses is not None:
            made.losses.append(losses[:, 0].cpu())
        norms = whole_squares(whole, self.context.spec.side_blocks)
        made.norms.append(_columns(norms))
        if rows is not whole:
            made.outside.append(_columns(remainders(norms, rows)))
            norms = whole_squares(rows, ())
        if not made.halves:
            return
        scales = {
            block: encode(rows[block], norms[block], target)
            for p, halves in enumerate(made.halves)
            for block, target in split(
                halves[self.of.of(place)], self.context.spec.piece(p)
            ).items()
        }
        made.scales.append(_columns(scales))

    def write(self, tile: int) -> None:
        """The whole tile; the next rows are those of another one."""
        made, self.made = self.made, _Tile(next(self.memory))
        self.call(self._write, tile, made)

    def _write(self, tile: int, made: _Tile) -> None:
        store, of = self.context.store, self.of
        wanted, norms = of.of(self.context.spec.plan.train[tile]), torch.cat(made.norms).numpy()
        # Losses first: where the rest is, they are, and are not computed by themselves.
        if made.losses and (self.norms_too or not store.has(TRAINING_LOSS, (tile,))):
            store.write(TRAINING_LOSS, wanted, torch.cat(made.losses).numpy())
        if self.norms_too or not store.has(of.norms, (tile, 0)):
            store.write(of.norms, wanted, norms)
        if not made.halves:
            return
        if made.outside:
            store.write("outside_norms", wanted, torch.cat(made.outside).numpy())
        store.write(of.scales, wanted, torch.cat(made.scales).numpy())
        for p, halves in enumerate(made.halves):  # rows last: where they are, their scales are
            store.write(of.name(p), wanted, halves[: len(norms)].numpy())


@contextmanager
def _aside(most: int) -> Iterator[Callable[..., None]]:
    """Calls functions in their order in a thread beside this one.

    After one that failed no other is called: what follows may build on it.

    Args:
        most: of them that are not done yet when another one comes; until then it waits.

    Yields:
        What calls a function with arguments, soon.
    """
    waiting: deque[Future[Any]] = deque()
    failed: list[BaseException] = []

    def call(function: Callable[..., Any], *arguments: Any) -> None:
        if failed:
            return
        try:
            function(*arguments)
        except BaseException as error:
            failed.append(error)
            raise

    def later(function: Callable[..., Any], *arguments: Any) -> None:
        while len(waiting) >= most:
            waiting.popleft().result()
        waiting.append(thread.submit(call, function, *arguments))

    with ThreadPoolExecutor(1) as thread:
        yield later
        while waiting:
            waiting.popleft().result()


def _columns(columns: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(columns.values()), 1).cpu()


def write_vectors(part: int, context: Context, inputs: Inputs) -> None:
    """The gradients of a tile of test samples, or the sums over the groups in a part of them."""
    spec, plan, codes = context.spec, context.spec.plan, context.spec.codes
    wanted = (plan.test if codes is None else spec.parts)[part]
    length = wanted.stop - wanted.start if codes is None else plan.m
    flat = torch.zeros(length, plan.n_parameters, dtype=getattr(torch, spec.vector_dtype))
    for place, rows in context.computed(inputs, inputs.test, spec.test, wanted):
        vectors = torch.cat(list(rows.values()), 1).cpu()
        if codes is None:
            flat[place] = vectors
        else:
            of_place = codes[wanted.start + place.start : wanted.start + place.stop]
            flat.index_add_(0, torch.tensor(of_place), vectors.to(flat.dtype))
    to, at = (wanted, 0) if codes is None else (slice(0, plan.m), part)
    for p in range(len(plan.pieces)):
        write_matrix(context, vectors_name(p), flat[:, spec.columns(p)], to, at)
