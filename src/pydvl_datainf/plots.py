"""Pictures of scores: numpy arrays in, matplotlib Axes out."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from sklearn.metrics import auc, roc_curve

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]

# Okabe and Ito's colours, which people with any of the common colour blindnesses tell apart; line
# styles differ as well, for prints in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":")


def roc_curves(suspicions: Mapping[str, Floats], mislabelled: Mask, ax: Axes | None = None) -> Axes:
    """Draws how many mislabelled samples each score finds against how many clean ones it accuses.

    Args:
        suspicions: for each name one number for each sample, (n,), larger for samples that look
            mislabelled.
        mislabelled: which samples are, (n,).
        ax: where to draw; new axes by default.

    Returns:
        The axes, with one curve for each score and its AUC in the legend.
    """
    ax = _axes(ax)
    for (name, suspicion), colour, style in zip(
        suspicions.items(), cycle(COLOURS), cycle(STYLES), strict=False
    ):
        clean_share, found_share, _ = roc_curve(mislabelled, suspicion)
        label = f"{name}: {auc(clean_share, found_share):.3f}"
        ax.plot(clean_share, found_share, color=colour, linestyle=style, label=label)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="Chance: 0.500")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="Share of the clean labels accused", ylabel="Share of the wrong labels found")
    ax.legend(loc="lower right", title="AUC", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def score_distribution(
    scores: Floats,
    mislabelled: Mask,
    ax: Axes | None = None,
    *,
    name: str = "Score",
    bins: int = 40,
) -> Axes:
    """Draws the histograms of a score over clean and over mislabelled samples, each of area one.

    The bins span the middle 98% of the scores. What lies further out is counted in the outermost
    bins, so that a few extreme scores do not press all others into one bin.

    Args:
        scores: one number for each sample, (n,).
        mislabelled: which samples are mislabelled, (n,).
        ax: where to draw; new axes by default.
        name: what the score is called.
        bins: how many bins.

    Returns:
        The axes, with two histograms.
    """
    ax = _axes(ax)
    edges = np.histogram_bin_edges(np.percentile(scores, [1, 99]), bins=bins)
    # In float64 like the edges: rounding must not push a score out of the last bin.
    inside = np.clip(scores.astype(np.float64), edges[0], edges[-1])
    for samples, label, colour in (
        (~mislabelled, "clean", COLOURS[0]),
        (mislabelled, "flipped", COLOURS[1]),
    ):
        counts, _ = np.histogram(inside[samples], edges)
        density = counts / (max(samples.sum(), 1) * np.diff(edges))
        ax.stairs(density, edges, fill=True, alpha=0.25, color=colour)
        text = f"{label} ({samples.sum():,})"
        ax.stairs(density, edges, linewidth=1.5, color=colour, label=text)
    ax.set(xlabel=name, yticks=[], ylabel="Density")
    ax.ticklabel_format(axis="x", scilimits=(-3, 4))
    ax.legend(title="Label", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax
