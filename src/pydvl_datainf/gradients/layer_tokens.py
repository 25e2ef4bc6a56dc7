"""Output gradients and inputs of linear layers, by sample: rows are sums of their products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pydvl_datainf.gradients.calls import Call
from pydvl_datainf.gradients.moments import LinearBlock, linear_blocks, positions
from pydvl_datainf.gradients.passes import Pass


def linear_blocks_of(engine: Any) -> dict[str, LinearBlock]:
    """The blocks that are one linear layer with its weight, or a convolution.

    Args:
        engine: or whatever else has a model and its blocks.

    Returns:
        They, by name.
    """
    while hasattr(engine, "engine"):
        engine = engine.engine
    found = linear_blocks(engine.model, engine.blocks)
    return {block: layer for block, layer in found.items() if layer.weight is not None}


def tokens_of(
    layer: LinearBlock, names: set[str], done: Pass, grads: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor] | None:
    """What the rows of a block follow from.

    Args:
        layer: that the block is.
        names: of its parameters.
        done: a pass.
        grads: at the outputs of its uses.

    Returns:
        Output gradients (B, t, o) and inputs (B, t, i) of all calls, one behind the other, or the
        other way round, as in rows; None where these do not tell the rows, or there are none.
    """
    tokens = []
    for use, g in zip(done.uses, grads, strict=True):
        if g is None or names.isdisjoint(use.names):
            continue
        if not isinstance(use, Call) or not _is_plain(use, layer, names):
            return None
        tokens.append(_tokens(use, layer, g.to(done.inputs.dtype)))
    if not tokens:
        return None
    e, x = (torch.cat(parts, 1) for parts in zip(*tokens, strict=True))
    return e, x


def _is_plain(call: Call, layer: LinearBlock, names: set[str]) -> bool:
    """Whether rows of a block follow from a call's input and output gradient, and no others do."""
    is_known = call.layer.rules is not None and call.layer.module in layer.modules
    return is_known and names >= set(call.names)


def _tokens(call: Call, layer: LinearBlock, g: Tensor) -> tuple[Tensor, Tensor]:
    """Output gradients (B, t, o) and inputs (B, t, i), with that of a bias behind them."""
    (x,) = (*call.args, *call.kwargs.values())
    module = call.layer.module
    parts = layer.factors(module, *positions(module, x.to(g), g))
    e, x = (part.reshape(call.length, -1, part.shape[1]) for part in parts)
    return e, x
