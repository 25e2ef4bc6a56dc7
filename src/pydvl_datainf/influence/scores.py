"""Influences of blocks, each by itself or added up, in their dtype and checked for overflow."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pydvl_datainf.inverse.damping import check_finite
from pydvl_datainf.vectors import BlockVectors, narrowed, total


def scores_by_block(parts: Mapping[str, Tensor], dtype: torch.dtype) -> BlockVectors:
    """What was computed in float64, in the dtype of the influences."""
    scores = narrowed(parts, dtype)
    check_finite(scores)
    return scores


def added_scores(parts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The sum over blocks, in the dtype of the influences."""
    scores = total(parts).to(dtype)
    if not scores.isfinite().all():
        scores_by_block(parts, dtype)  # names the blocks
        check_finite({"all together": scores})
    return scores
