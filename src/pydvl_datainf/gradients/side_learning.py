"""Learning side bases of wide layers from some training samples."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pydvl_datainf.batches import Batch
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.gradients.by_length import (
    ByLengthEngine,
    computed_of_piece,
    pieces_by_length,
)
from pydvl_datainf.gradients.capture import CaptureEngine
from pydvl_datainf.gradients.checks import check_finite_rows
from pydvl_datainf.gradients.layer_tokens import linear_blocks_of, tokens_of
from pydvl_datainf.gradients.padding import PaddingCheckEngine
from pydvl_datainf.gradients.passes import Pass, backward
from pydvl_datainf.inverse.sides import SideMoments, Sides
from pydvl_datainf.vectors import BlockVectors


class SideLearner:
    """Adds up the moments from which side bases follow; in place of rows it gives none.

    From tokens where that can be, and otherwise from whole rows, whose moments take o + i products
    where those of tokens take a few.

    Args:
        engine: of whole rows.
        wanted: for some blocks how many outputs and inputs are kept.
    """

    def __init__(self, engine: Any, wanted: Mapping[str, tuple[int, int]]):
        self.engine, self.wanted = engine, wanted
        self.layers = linear_blocks_of(engine)
        self.moments: dict[str, SideMoments] = {}
        self.dtype = torch.float32

    def sides(self) -> dict[str, Sides]:
        """The side bases of the rows that were added."""
        return {
            block: moments.leading(self.wanted[block], self.dtype)
            for block, moments in self.moments.items()
        }

    def rows(self, batch: Batch) -> BlockVectors:
        """Adds the rows of a batch.

        Args:
            batch: a checked batch.

        Returns:
            No block.
        """
        return self._add(self.engine, batch)

    def _add(self, engine: Any, batch: Batch) -> BlockVectors:
        if isinstance(engine, ByLengthEngine):
            for where, piece in pieces_by_length(batch, engine.max_tokens):
                computed_of_piece(partial(self._add, engine.engine), piece, where)
            return OrderedDict()
        left, rows = set(self.wanted), None
        if isinstance(engine, PaddingCheckEngine) and isinstance(engine.engine, CaptureEngine):
            for is_compared in (False, True):
                with engine.engine.known_pass(batch, is_compared=is_compared) as done:
                    if done is not None:
                        left -= self._add_tokens(engine.engine.blocks, done)
                        break
                rows = rows or engine.rows(batch)
        if left:
            rows = rows or engine.rows(batch)
            for block in left:
                self._of(block, rows[block]).add_rows(rows[block])
        return OrderedDict()

    def _add_tokens(self, blocks: Blocks, done: Pass) -> set[str]:
        """Adds what tokens tell; returns the blocks of which they do."""
        grads = backward(done.losses.sum(), [use.edge for use in done.uses])
        added = set()
        for block in self.wanted:
            tokens = tokens_of(self.layers[block], set(blocks.members[block]), done, grads)
            if tokens is None:
                continue
            for part in tokens:
                check_finite_rows({block: part.flatten(1)})
            self._of(block, tokens[0]).add_tokens(*tokens)
            added.add(block)
        return added

    def _of(self, block: str, like: Tensor) -> SideMoments:
        layer, self.dtype = self.layers[block], like.dtype
        new = SideMoments.zeros(layer.shape, layer.has_both, like.device)
        return self.moments.setdefault(block, new)
