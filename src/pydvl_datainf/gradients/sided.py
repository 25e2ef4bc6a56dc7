"""Small rows of wide layers, which side bases make of inputs and output gradients.

Rows are packed: in a block with side bases a row is its small row and behind it ‖G‖, that of the
whole one, which nothing else would know.
"""

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from pydvl_datainf.batches import Batch
from pydvl_datainf.gradients import GradientEngine, LossGradientEngine
from pydvl_datainf.gradients.by_length import ByLengthEngine
from pydvl_datainf.gradients.capture import CaptureEngine
from pydvl_datainf.gradients.checks import check_finite_rows
from pydvl_datainf.gradients.layer_tokens import linear_blocks_of, tokens_of
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.gradients.padding import PaddingCheckEngine
from pydvl_datainf.gradients.passes import Pass, backward
from pydvl_datainf.gradients.places import BeginAgainError
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.sides import Sides, norms_of_tokens
from pydvl_datainf.vectors import BlockVectors

Engine = TypeVar("Engine", bound=GradientEngine)


def packed(rows: Mapping[str, Tensor], sides: Mapping[str, Sides]) -> BlockVectors:
    """Whole rows as packed ones.

    Args:
        rows: for each block whole rows, (B, d_l).
        sides: of some blocks.

    Returns:
        (B, a b + 1) in these, and others as they are.
    """
    return OrderedDict(
        (block, _pack(sides[block].small(v), squared_norms(v).sqrt()) if block in sides else v)
        for block, v in rows.items()
    )


def small_rows(rows: Mapping[str, Tensor], sides: Container[str]) -> BlockVectors:
    """Of packed rows the small ones, (B, a b), and others, (B, d_l), as they are."""
    return OrderedDict((block, v[:, :-1] if block in sides else v) for block, v in rows.items())


def whole_squares(rows: Mapping[str, Tensor], sides: Container[str]) -> BlockVectors:
    """The squared norms of the whole rows of packed ones, and of others, (B,) in float64."""
    return OrderedDict(
        (block, v[:, -1].double().square() if block in sides else squared_norms(v))
        for block, v in rows.items()
    )


def on_sides(engine: Engine, sides: Mapping[str, Sides]) -> "Engine | LossGradientEngine":
    """An engine whose rows are packed, from tokens where that can be.

    Args:
        engine: of whole rows.
        sides: of some blocks; empty = none.

    Returns:
        It, or the same engine.
    """
    if not sides:
        return engine
    if isinstance(engine, ByLengthEngine):
        return ByLengthEngine(on_sides(engine.engine, sides), engine.max_tokens)
    if isinstance(engine, PaddingCheckEngine) and isinstance(engine.engine, CaptureEngine):
        return PaddingCheckEngine(SidedEngine(engine.engine, sides), engine.model)
    return PackedEngine(engine, sides)


class PackedEngine:
    """Packed rows of whole ones, such as those in Adam's coordinates.

    Args:
        engine: computes whole rows.
        sides: of some blocks.
    """

    def __init__(self, engine: GradientEngine, sides: Mapping[str, Sides]):
        self.engine, self.sides = engine, sides

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes packed gradients of the samples' own losses, by block."""
        return packed(self.engine.rows(batch), self.sides)

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes the same, and beside them, under `LOSS`, the losses, (B, 1)."""
        whole = cast(LossGradientEngine, self.engine).rows_with_losses(batch)
        return packed(whole, self.sides)


class SidedEngine:
    """Packed rows from tokens, by capture.

    Whole rows are made where layers of a block are not called in the plain way, and where tokens
    are so many that whole rows cost less. Where capture compares with plain autograd they are made
    beside: rows do not depend, by rounding, on what else was computed in a process before.

    Args:
        engine: captures.
        sides: of some blocks, which are linear layers.
    """

    def __init__(self, engine: CaptureEngine, sides: Mapping[str, Sides]):
        self.engine, self.sides = engine, sides
        self.layers = linear_blocks_of(engine)

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes packed gradients of the samples' own losses.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block packed rows.
        """
        rows = self.rows_with_losses(batch)
        del rows[LOSS]
        return rows

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes the same, and beside them, under `LOSS`, the losses, (B, 1)."""
        found = self._known(batch, is_compared=False)
        if found is None:
            whole = self.engine.rows_with_losses(batch)
            found = self._known(batch, is_compared=True) or packed(whole, self.sides)
        return found

    def _known(self, batch: Batch, *, is_compared: bool) -> "BlockVectors | None":
        with self.engine.known_pass(batch, is_compared=is_compared) as done:
            return None if done is None else self._rows(done)

    def _rows(self, done: Pass) -> "BlockVectors | None":
        """Packed rows of a pass that was compared before; None where capture has to begin again."""
        engine = self.engine
        grads = backward(done.losses.sum(), [use.edge for use in done.uses])
        small = {block: self._of_tokens(block, done, grads) for block in self.sides}
        vectors = {block: v for block, v in small.items() if v is not None}
        others = engine.blocks.without(vectors)
        try:
            rows = engine.passes.rows(done, grads, others.shapes)
        except BeginAgainError:
            return None
        vectors |= packed(others.gather(rows, done.inputs.device), self.sides)
        found = OrderedDict((block, vectors[block]) for block in engine.blocks.names)
        check_finite_rows(found)
        found[LOSS] = done.losses.detach()[:, None].to(done.inputs.dtype)
        return found

    def _of_tokens(self, block: str, done: Pass, grads: Sequence[Tensor | None]) -> Tensor | None:
        """Packed rows of a block, (B, a b + 1); None where its whole rows are to be made."""
        names, sides = set(self.engine.blocks.members[block]), self.sides[block]
        tokens = tokens_of(self.layers[block], names, done, grads)
        if tokens is None or not sides.saves(tokens[0].shape[1]):
            return None
        rows = _pack(sides.small_of_tokens(*tokens), norms_of_tokens(*tokens))
        return rows.to(done.inputs.device)


def _pack(small: Tensor, norms: Tensor) -> Tensor:
    return torch.cat([small, norms[:, None].to(small)], 1)
