"""What the blocks of a model add to an influence, how they are damped and how they approximate."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from pydvl_datainf.block_labels import block_labels
from pydvl_datainf.evaluation import largest
from pydvl_datainf.plots.arrays import Floats, checked_floats
from pydvl_datainf.plots.style import (
    COLOURS,
    GREY,
    HARMFUL,
    HELPFUL,
    add_legend,
    axes_with_rows,
    hide_spines,
)


def shares_of_sum(scores: Floats) -> Floats:
    """The share of each block in the summed influences, by projection; the shares add up to one.

    With s_l the influences of block l and s = Σ_l s_l, the share is ⟨s_l, s⟩ / ⟨s, s⟩, summed over
    all pairs of a test and a training sample. Influences have signs, so the share of a block that
    works against the sum is negative, and that of others may exceed one.

    Args:
        scores: influences by block, (m, L, n).

    Returns:
        Shares, (L,).

    Raises:
        ValueError: if there is another number of axes, a score is not finite, or the sums are all
            zero.

    Examples:
        >>> shares_of_sum(np.array([[[3.0, 1.0], [1.0, -1.0]]]))
        array([0.75, 0.25])
    """
    values = checked_floats("scores", scores, 3)
    total = values.sum(axis=1)
    square = np.vdot(total, total)
    if square == 0:
        raise ValueError("the influences are all zero when summed over blocks, so none has a share")
    shares: Floats = np.einsum("iln,in->l", values, total) / square
    return shares


def block_shares(
    scores: Floats, blocks: Sequence[str], ax: Axes | None = None, *, shown: int = 20
) -> Axes:
    """Draws what share each block has in the influences.

    Bars are the shares of `shares_of_sum`, which add up to one and are negative for a block that
    works against the sum. Diamonds are shares in the absolute influences, Σ|s_l| / Σ_k Σ|s_k|,
    which are never negative: a block with a diamond far beyond its bar has large influences that
    say little about the sum.

    Args:
        scores: influences by block, (m, L, n), as a run by block keeps them.
        blocks: the names of the blocks, (L,).
        ax: where to draw; new axes by default, as tall as the number of rows asks for.
        shown: how many blocks have a row of their own; those with the smallest absolute shares
            are added up in one row.

    Returns:
        The axes, with a row for each block in the order of the model.

    Raises:
        ValueError: if the shapes differ, if a score is not finite, if the sums are all zero, or if
            `shown` is not positive.
    """
    if shown < 1:
        raise ValueError(f"shown must be at least 1, got {shown}")
    signed = shares_of_sum(scores)
    names = _names(blocks, len(signed))
    absolute = np.abs(scores).sum(axis=(0, 2), dtype=np.float64)
    absolute /= absolute.sum()
    own = np.sort(largest(absolute, shown))
    others = np.setdiff1d(np.arange(len(signed)), own)
    rows = [[i] for i in own] + ([others] if others.size else [])
    bars = np.array([signed[row].sum() for row in rows])
    ax = axes_with_rows(ax, [names[i] for i in own] + [f"{len(others)} others"] * (others.size > 0))
    colours = np.where(bars < 0, HARMFUL, HELPFUL)
    drawn = ax.barh(range(len(rows)), bars, color=colours, height=0.7)
    look = {"marker": "D", "facecolors": "none", "edgecolors": mpl.rcParams["text.color"]}
    marks = ax.scatter([absolute[row].sum() for row in rows], range(len(rows)), s=22, **look)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set_xlabel("Share in the influences")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
    add_legend(ax, [drawn, marks], ["of the sum", "of the absolute values"], **place)
    hide_spines(ax, "left")
    return ax


def damping_by_block(blocks: Sequence[str], damping: Floats, ax: Axes | None = None) -> Axes:
    """Draws the damping λ of each block as dots on a logarithmic axis.

    Args:
        blocks: the names of the blocks, (L,).
        damping: λ > 0 of each, (L,).
        ax: where to draw; new axes by default, as tall as the number of blocks asks for.

    Returns:
        The axes, with a row for each block in the given order.

    Raises:
        ValueError: if the shapes differ, or a λ is not finite and positive.
    """
    values = checked_floats("damping", damping)
    if values.min() <= 0:
        raise ValueError(f"a damping is positive, but the smallest is {values.min():g}")
    ax = axes_with_rows(ax, _names(blocks, values.size))
    ax.scatter(values, range(values.size), color=COLOURS[0], s=22)
    ax.set(xscale="log", xlabel="Damping λ")
    ax.grid(axis="x", color=GREY, alpha=0.3)
    hide_spines(ax, "left")
    return ax


def error_by_block(blocks: Sequence[str], errors: Floats, ax: Axes | None = None) -> Axes:
    """Draws the relative error of the approximation in each block as bars.

    Args:
        blocks: the names of the blocks, (L,).
        errors: of each, (L,), not negative; `ApproximationError.errors` holds them.
        ax: where to draw; new axes by default, as tall as the number of blocks asks for.

    Returns:
        The axes, with a row for each block in the given order.

    Raises:
        ValueError: if the shapes differ, or an error is negative or not finite.
    """
    values = checked_floats("errors", errors)
    if values.min() < 0:
        raise ValueError(f"a relative error is not negative, but the smallest is {values.min():g}")
    ax = axes_with_rows(ax, _names(blocks, values.size))
    ax.barh(range(values.size), values, color=COLOURS[0], height=0.7)
    ax.set_xlabel("Relative error of the approximation")
    ax.grid(axis="x", color=GREY, alpha=0.3)
    hide_spines(ax, "left")
    return ax


def _names(blocks: Sequence[str], count: int) -> list[str]:
    if len(blocks) != count:
        raise ValueError(f"there are numbers of {count} blocks, but {len(blocks)} names")
    return block_labels(blocks)
