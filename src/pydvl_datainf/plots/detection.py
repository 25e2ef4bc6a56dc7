"""How well suspicions find wrong labels."""

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from pydvl_datainf.plots.arrays import Floats, Mask, checked_floats, checked_mask
from pydvl_datainf.plots.style import COLOURS, GREY, STYLES, add_legend, hide_spines, new_axes


def roc_curves(suspicions: Mapping[str, Floats], mislabelled: Mask, ax: Axes | None = None) -> Axes:
    """Draws how many mislabelled samples each score finds against how many clean ones it accuses.

    Args:
        suspicions: for each name one number for each sample, (n,), larger for samples that look
            mislabelled.
        mislabelled: which samples are, (n,); some, but not all of them.
        ax: where to draw; new axes by default.

    Returns:
        The axes, with one curve for each score and its AUC in the legend, and the line of chance.

    Raises:
        ValueError: if shapes differ, a suspicion is not finite, or all labels are wrong or none.
    """
    from sklearn.metrics import auc, roc_curve

    ax = new_axes(ax)
    names = []
    for name, values, wrong, look in _curves(suspicions, mislabelled):
        clean_share, found_share, _ = roc_curve(wrong, values)
        names.append(f"{name}: {auc(clean_share, found_share):.3f}")
        ax.plot(clean_share, found_share, label=names[-1], **look)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="Chance: 0.500")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="Share of the clean labels accused", ylabel="Share of the wrong labels found")
    add_legend(ax, ax.lines, [*names, "Chance: 0.500"], loc="lower right", title="AUC")
    hide_spines(ax)
    return ax


def inspection_curves(
    suspicions: Mapping[str, Floats], mislabelled: Mask, ax: Axes | None = None
) -> Axes:
    """Draws the share of the wrong labels that is found, the most suspicious inspected first.

    Equal suspicions are inspected in random order: the curve is what is found on average, a
    straight line across them.

    Args:
        suspicions: for each name one number for each sample, (n,), larger for samples that look
            mislabelled.
        mislabelled: which samples are, (n,); some, but not all of them.
        ax: where to draw; new axes by default.

    Returns:
        The axes, with one curve for each score, the line of chance, and that of perfection, which
        inspects all wrong labels before the first right one.

    Raises:
        ValueError: if shapes differ, a suspicion is not finite, or all labels are wrong or none.
    """
    ax = new_axes(ax)
    names = []
    for name, values, wrong, look in _curves(suspicions, mislabelled):
        ax.plot(*_inspected(values, wrong), **look)
        names.append(name)
    share = float(np.mean(mislabelled))
    ax.plot([0, share, 1], [0, 1, 1], color=GREY, linewidth=1, linestyle=":")
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    ax.set(xlabel="Share of all labels inspected", ylabel="Share of the wrong labels found")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    add_legend(ax, ax.lines, [*names, "Perfect", "Chance"], loc="lower right")
    hide_spines(ax)
    return ax


def _curves(
    suspicions: Mapping[str, Floats], mislabelled: Mask
) -> Iterator[tuple[str, Floats, Mask, dict[str, Any]]]:
    """Each name with its suspicions and its look, and the mask, all of them checked."""
    if not suspicions:
        raise ValueError("suspicions is empty; give at least one score to draw")
    looks = zip(cycle(COLOURS), cycle(STYLES), strict=False)
    for (name, given), (colour, style) in zip(suspicions.items(), looks, strict=False):
        values = checked_floats(f"the suspicions {name!r}", given)
        wrong = checked_mask("mislabelled", mislabelled, values.size)
        if wrong.all() or not wrong.any():
            raise ValueError(
                f"a curve needs mislabelled and clean samples, but {wrong.sum()} of {wrong.size} "
                "are mislabelled"
            )
        yield name, values, wrong, {"color": colour, "linestyle": style}


def _inspected(suspicion: Floats, wrong: Mask) -> tuple[Floats, Floats]:
    """The shares inspected and found after each distinct suspicion, from (0, 0) to (1, 1)."""
    _, group = np.unique(-suspicion, return_inverse=True)
    inspected, found = np.bincount(group), np.bincount(group, weights=wrong)
    inspected, found = (np.append(0, np.cumsum(counts)) for counts in (inspected, found))
    return inspected / inspected[-1], found / found[-1]
