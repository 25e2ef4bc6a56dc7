"""Influences of the fitted samples, from the rows that `fit` read."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pydvl_datainf.errors import DampingError, SourceError
from pydvl_datainf.gradients.compressed import CompressedRows
from pydvl_datainf.gradients.supported import preserved_rng
from pydvl_datainf.influence.fitted import Fitted
from pydvl_datainf.influence.scores import added_scores, scores_by_block
from pydvl_datainf.inverse.damping import check_representable, given_scale
from pydvl_datainf.inverse.sweep import at_scales
from pydvl_datainf.vectors import BlockVectors, concatenated, grouped, products, widened

_GROUP_BYTES = 2**29  # rows that self_influences holds at once, beside those that are kept


def scores_on_fitted(fitted: Fitted, factors: BlockVectors, dtype: torch.dtype) -> Tensor:
    """Products of factors (m, d_l) with the rows of all n fitted samples, summed, (m, n)."""
    with preserved_rng(fitted.device):
        parts = (products(factors, rows) for rows in fitted.source.chunks())
        return torch.cat([added_scores(part, dtype) for part in parts], dim=1)


def scores_on_fitted_by_block(
    fitted: Fitted, factors: BlockVectors, dtype: torch.dtype
) -> BlockVectors:
    """For each block products of factors (m, d_l) with the rows of all fitted samples, (m, n)."""
    with preserved_rng(fitted.device):
        parts = (products(factors, rows) for rows in fitted.source.chunks())
        return concatenated([scores_by_block(part, dtype) for part in parts], dim=1)


def check_multiples(fitted: Fitted, scales: Sequence[float], dtype: torch.dtype) -> list[float]:
    """Checks by what the fitted λ are multiplied.

    Args:
        fitted: with its λ.
        scales: the multiples.
        dtype: of the rows.

    Returns:
        The multiples.

    Raises:
        DampingError: if there is no λ or no multiple, one is not positive, or gives a λ that is
            lost in this dtype.
    """
    if not fitted.method.is_damped or not scales:
        raise DampingError(
            "A sweep is over multiples of λ, and there is none. Give a method with a damping "
            "some scales, such as (0.1, 1, 10)."
        )
    multiples = [given_scale(scale, {}, fitted.damping) for scale in scales]
    for factor in multiples:
        check_representable({b: factor * λ for b, λ in fitted.damping.items()}, dtype)
    return multiples


def sweep(fitted: Fitted, vectors: BlockVectors, multiples: Sequence[float]) -> BlockVectors:
    """The inverse times vectors under each multiple of λ, one below the other."""
    if not isinstance(fitted.source, CompressedRows):
        makes = {b: at_scales(method.times, multiples) for b, method in fitted.methods.items()}
        return fitted.times(vectors, makes)
    # Compressed rows are fed as λ weighs them: passes for each λ, over what is in memory.
    dampings = ({b: factor * λ for b, λ in fitted.damping.items()} for factor in multiples)
    return concatenated([replace(fitted, damping=d).times(vectors) for d in dampings])


def forms_of(fitted: Fitted, rows: Iterable[BlockVectors]) -> BlockVectors:
    """gᵀ (inverse) g of each row, group by group.

    Args:
        fitted: with the training rows.
        rows: chunks of rows of some samples, as the fitted ones are.

    Returns:
        For each block one number a sample, (n,), in float64.

    Raises:
        SourceError: if there are no rows.
    """
    parts: list[BlockVectors] = []
    residuals: list[Tensor] = []
    for group in grouped(map(widened, rows), _GROUP_BYTES):
        found: dict[str, Tensor] = {}
        parts.append(fitted.forms(group, found))
        residuals += found.values()
    if not parts:
        raise SourceError("The data is empty; self-influences need at least one sample.")
    fitted.warn_of(residuals)
    return concatenated(parts)
