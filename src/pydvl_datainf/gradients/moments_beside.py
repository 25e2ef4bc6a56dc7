"""Rows of gradients, and beside them the moments of layers, from the same passes where that can be.

Capture knows inputs and output gradients of layers anyway. Where it compares with plain autograd,
where a batch is a single sample, and where it does not explain a layer, moments take a forward and
a backward pass of their own. So they do where rows are those of other labels.
"""

from pydvl_datainf.batches import Batch
from pydvl_datainf.gradients.by_length import ByLengthEngine
from pydvl_datainf.gradients.calls import Call
from pydvl_datainf.gradients.capture import CaptureEngine
from pydvl_datainf.gradients.engines import GradientEngine
from pydvl_datainf.gradients.moments import LayerMoments
from pydvl_datainf.gradients.padding import PaddingCheckEngine
from pydvl_datainf.vectors import BlockVectors


def with_moments(engine: GradientEngine, moments: LayerMoments) -> GradientEngine:
    """An engine of the same rows that adds up moments of layers over the same samples.

    Args:
        engine: computes rows.
        moments: to which those of each batch are added.

    Returns:
        It.
    """
    if isinstance(engine, ByLengthEngine):
        return ByLengthEngine(with_moments(engine.engine, moments), engine.max_tokens)
    if isinstance(engine, PaddingCheckEngine) and isinstance(engine.engine, CaptureEngine):
        return _OfOnePass(engine, engine.engine, moments)
    return _OfTwoPasses(engine, moments)


class _OfTwoPasses:
    """Rows, and moments from a pass of their own."""

    def __init__(self, engine: GradientEngine, moments: LayerMoments):
        self.engine, self.moments = engine, moments

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the rows of a batch."""
        rows = self.engine.rows(batch)
        self.moments.add(batch)
        return rows


class _OfOnePass:
    """Rows, and moments from the pass of capture where that shows all calls of the layers."""

    def __init__(self, engine: GradientEngine, capture: CaptureEngine, moments: LayerMoments):
        self.engine, self.capture, self.moments = engine, capture, moments
        self.modules, members = moments.modules, capture.blocks.members
        self.names = {name for block in moments.layers for name in members[block]}

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the rows of a batch."""
        with self.capture.noting_passes() as passes:
            rows = self.engine.rows(batch)
        # A sample of it may have been captured once more, without its padding.
        own = [noted for noted in passes if noted[0].inputs.batch is batch]
        if not own or self.names & self.capture.places.reasons.keys():
            self.moments.add(batch)
            return rows
        done, grads = own[-1]
        for use, g in zip(done.uses, grads, strict=True):
            if g is None or not isinstance(use, Call) or use.layer.module not in self.modules:
                continue
            # A layer whose weight follows from other parameters is watched for these once more.
            if not self.names.isdisjoint(use.names):
                (x,) = (*use.args, *use.kwargs.values())
                self.moments.add_call(use.layer.module, x, g, done.inputs.length)
        return rows
