"""How much each block is damped: given by the caller, or chosen from the size of its gradients."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pydvl_datainf.errors import DampingError
from pydvl_datainf.vectors import rows_at_once

SHARE = 0.1
"""λ_l as a share of the mean squared gradient entry of block l (Kwon et al. 2024, section 4)."""

NOISE = 16
"""Machine epsilons of the largest block's gradients below which a block counts as zero."""

MOST_NAMED = 5
"""Blocks that a message names."""


@dataclass(frozen=True, slots=True)
class SquaredNorms:
    """Sums over the training samples of the squared norms of their gradients, block by block.

    Args:
        sums: for each block Σ_i ‖g_i‖², a float64 number.
        n: the number of samples in the sums.
    """

    sums: Mapping[str, float]
    n: int


def given_damping(regularization: Any, blocks: Iterable[str]) -> dict[str, float]:
    """Checks a regularization against the names of the blocks.

    Args:
        regularization: "auto", a positive number for all blocks, or a mapping of block name to
            positive number; blocks that the mapping leaves out are chosen automatically.
        blocks: the names of the blocks.

    Returns:
        λ of the blocks that have one.

    Raises:
        DampingError: if a number is not positive and finite, or a name is not a block's.
    """
    names = list(blocks)
    if isinstance(regularization, str) and regularization == "auto":
        return {}
    if not isinstance(regularization, Mapping):
        return dict.fromkeys(names, _positive(regularization, "regularization"))
    unknown = [name for name in regularization if name not in names]
    if unknown:
        raise DampingError(f"No such blocks: {unknown}. The blocks are {names}.")
    return {name: _positive(λ, f"the λ of block '{name}'") for name, λ in regularization.items()}


def given_scale(scale: Any, given: Mapping[str, float], blocks: Iterable[str]) -> float:
    """Checks by how much automatic damping is multiplied.

    Args:
        scale: a positive number, or None = 1.
        given: λ of the blocks that have one, which are not multiplied.
        blocks: the names of the blocks.

    Returns:
        The number.

    Raises:
        DampingError: if it is not positive and finite, or every block has a λ of its own.
    """
    if scale is None:
        return 1.0
    number = _positive(scale, "damping_scale")
    if given.keys() >= set(blocks):
        raise DampingError(
            "damping_scale multiplies the λ that are chosen automatically, and every block was "
            'given its own. Leave out damping_scale, or use regularization="auto".'
        )
    return number


def squared_norms(rows: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """‖g_i‖² of each row, in float64: squares of small gradients underflow in float32."""
    parts = torch.split(rows, rows_at_once(rows))  # torch makes a copy in float64
    norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]
    return torch.cat(norms).square()


def automatic_damping(
    norms: SquaredNorms, widths: Mapping[str, int], wanted: Collection[str], dtype: torch.dtype
) -> dict[str, float]:
    r"""The paper's rule, λ_l = 0.1 (1/(n d_l)) Σ_i ‖g_i‖².

    Both n, the number of training samples, and d_l, the width of the block, divide.
    Source: Kwon, Wu, Wu, Zou, "DataInf", ICLR 2024.

    Args:
        norms: sums over the n training samples, for all blocks.
        widths: d_l of all blocks.
        wanted: the blocks for which λ is chosen.
        dtype: of the rows; its machine epsilon tells gradients from rounding noise.

    Returns:
        λ for each block wanted.

    Raises:
        DampingError: if the gradients of a block are zero up to rounding: 1/λ would blow the noise
            up into scores.
    """
    rms = {block: (norms.sums[block] / (norms.n * d)) ** 0.5 for block, d in widths.items()}
    lost = [block for block, size in rms.items() if not isfinite(size)]
    if lost:
        raise DampingError(
            f"The squared gradients of blocks {lost} overflow. Multiply the loss by a constant < 1."
        )
    noise = NOISE * torch.finfo(dtype).eps * max(rms.values())
    zero = [block for block in wanted if rms[block] <= noise]
    if zero:
        more = f" and {len(zero) - MOST_NAMED} more" if len(zero) > MOST_NAMED else ""
        untuned = all("lora_A" in block for block in zero)
        hint = "Adapters are so before training: tune them first. " if untuned else ""
        raise DampingError(
            f"The gradients of {len(zero)} of {len(rms)} blocks are zero up to rounding, so no "
            f"damping follows from them: {zero[:MOST_NAMED]}{more}. {hint}Freeze their parameters, "
            "leave them out with a block_structure, or give each a λ "
            "with regularization={...}."
        )
    return {block: SHARE * rms[block] ** 2 for block in wanted}


def resolve_damping(
    given: Mapping[str, float],
    norms: SquaredNorms | None,
    widths: Mapping[str, int],
    dtype: torch.dtype,
    scale: float = 1.0,
) -> dict[str, float]:
    """Computes λ of every block: as given, and by the paper's rule where none is.

    Args:
        given: λ of some or all blocks.
        norms: sums over the training samples, for all blocks; None where all λ are given.
        widths: d_l of all blocks.
        dtype: of the rows.
        scale: by which λ that follow from the rule are multiplied.

    Returns:
        λ of each block, in the order of `widths`.

    Raises:
        DampingError: if the gradients of a block without λ are zero, or a λ is lost in this dtype.
    """
    wanted = [block for block in widths if block not in given]
    assert norms is not None or not wanted  # callers sum the norms that are needed
    automatic = {} if norms is None else automatic_damping(norms, widths, wanted, dtype)
    damping = {**given, **{block: scale * λ for block, λ in automatic.items()}}
    check_representable(damping, dtype)
    return {block: damping[block] for block in widths}


def check_representable(damping: Mapping[str, float], dtype: torch.dtype) -> None:
    """Checks that 1/λ and λ can be computed with.

    Args:
        damping: λ per block.
        dtype: of the rows.

    Raises:
        DampingError: if a λ is lost in this dtype.
    """
    info = torch.finfo(dtype)
    lost = {block: λ for block, λ in damping.items() if not info.tiny <= λ <= info.max}
    if lost:
        raise DampingError(
            f"λ is out of the range of {dtype}: {lost}. Use a float64 model (model.double()), or "
            "multiply the loss by a constant c, which multiplies λ by c²."
        )


def check_finite(vectors: Mapping[str, Tensor]) -> None:
    """Checks that transformed vectors did not overflow.

    Args:
        vectors: for each block vectors as rows.

    Raises:
        DampingError: if any entry is infinite or NaN.
    """
    lost = [block for block, v in vectors.items() if not v.isfinite().all()]
    if lost:
        raise DampingError(
            f"The inverse overflows in blocks {lost}: the damping is too small, or the gradients "
            "too large, for this dtype. Use a float64 model (model.double()), a larger λ, or "
            "scale the loss."
        )


def _positive(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        others = ', a mapping of numbers per block, or "auto"' if what == "regularization" else ""
        raise DampingError(f"{what} must be a positive number{others}; got {value!r}.")
    number = float(value)
    if not (isfinite(number) and number > 0):
        raise DampingError(f"{what} must be positive and finite, got {value!r}.")
    return number
