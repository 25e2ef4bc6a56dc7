"""What `fit` does: reads the training data for the first time, and has λ chosen from its rows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pydvl_datainf.errors import ModelError
from pydvl_datainf.fingerprint import DataChecksum, Seen, differences, fingerprint
from pydvl_datainf.gradients.compressed import read_compressed
from pydvl_datainf.gradients.sources import Reader, RowsKept, RowSource, has_fixed_order, read_rows
from pydvl_datainf.gradients.supported import preserved_rng
from pydvl_datainf.influence.fitted import Fitted
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.damping import SquaredNorms, resolve_damping
from pydvl_datainf.inverse.method import Method
from pydvl_datainf.terminal import some


def read_fitted(
    reader: Reader,
    model: nn.Module,
    method: Method,
    keep: RowsKept | Compression,
    given: Mapping[str, float],
    widths: Mapping[str, int],
    dtype: torch.dtype,
    scale: float = 1.0,
    curvature: Reader | None = None,
) -> Fitted:
    """Reads the training data: counts it, chooses λ, and keeps rows where they fit.

    Args:
        reader: of the training data.
        model: whose gradients are read.
        method: what takes the place of the inverse of each block.
        keep: what happens to the rows, or how they are compressed.
        given: λ of the blocks that have one.
        widths: d_l of all blocks.
        dtype: of the rows.
        scale: of λ that are chosen.
        curvature: reads the rows that the inverse is made of, where they are others.

    Returns:
        What was found.
    """
    need_norms = len(given) < len(widths)
    before = fingerprint(model)
    source, norms, data = _read(reader, keep, need_norms=need_norms)
    after = fingerprint(model)
    if _changed_by_itself(before, after):  # as weights do that are quantised at first use
        before = after
        del source  # two at once would take twice the memory
        source, norms, data = _read(reader, keep, need_norms=need_norms)
        after = fingerprint(model)
    _check_own_buffers(before, after)
    other = None
    if curvature is not None:  # λ follows its rows, which may be more than samples
        other, norms, _ = _read(curvature, keep, need_norms=True)
    return Fitted(
        source,
        norms,
        resolve_damping(given, norms, widths, dtype, scale),
        reader.device,
        Seen(after),
        data.sums,
        has_fixed_order(reader.data),
        dict.fromkeys(widths, method),
        other,
    )


def _read(
    reader: Reader, keep: RowsKept | Compression, *, need_norms: bool
) -> tuple[RowSource, SquaredNorms | None, DataChecksum]:
    seen = DataChecksum()
    with preserved_rng(reader.device):
        watched = replace(reader, seen=seen)
        if isinstance(keep, Compression):
            return *read_compressed(watched, keep), seen
        return *read_rows(watched, keep, need_norms=need_norms), seen


def _changed_by_itself(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of what a forward pass changed in a model; new caches are fine."""
    return [name for name in differences(before, after) if name in before]


def _check_own_buffers(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    """Raises if the forward pass itself changed what the model contains."""
    changed = _changed_by_itself(before, after)
    if changed:
        raise ModelError(
            f"The model's own forward pass changes {some(changed)} each time, so its "
            "gradients differ from call to call. Switch that off, for instance with model.eval()."
        )
