"""How scores are distributed over samples of different labels."""

import numpy as np
from matplotlib.axes import Axes

from pydvl_datainf.plots.arrays import (
    Floats,
    Labels,
    Mask,
    checked_floats,
    checked_labels,
    checked_mask,
)
from pydvl_datainf.plots.style import (
    COLOURS,
    GREY,
    HARMFUL,
    HELPFUL,
    add_legend,
    axes_with_rows,
    hide_spines,
    new_axes,
    points,
)


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

    Raises:
        ValueError: if shapes differ, or a score is not finite.
    """
    # In float64 like the edges: rounding must not push a score out of the last bin.
    values = checked_floats("scores", scores)
    wrong = checked_mask("mislabelled", mislabelled, values.size)
    ax = new_axes(ax)
    edges = np.histogram_bin_edges(np.percentile(values, [1, 99]), bins=bins)
    inside = np.clip(values, edges[0], edges[-1])
    outlines = []
    for samples, colour in ((~wrong, COLOURS[0]), (wrong, COLOURS[1])):
        counts, _ = np.histogram(inside[samples], edges)
        density = counts / (max(samples.sum(), 1) * np.diff(edges))
        ax.stairs(density, edges, fill=True, alpha=0.25, color=colour)
        outlines.append(ax.stairs(density, edges, linewidth=1.5, color=colour))
    outlines[1].set_linestyle("--")
    ax.set(yticks=[], ylabel="Density")
    ax.set_xlabel(name, parse_math=False)
    ax.ticklabel_format(axis="x", scilimits=(-3, 4))
    names = [f"clean ({(~wrong).sum():,})", f"flipped ({wrong.sum():,})"]
    add_legend(ax, outlines, names, title="Label", loc="upper left", bbox_to_anchor=(1, 1))
    hide_spines(ax, "left")
    return ax


def influence_distribution(
    influences: Floats, labels: Labels, ax: Axes | None = None, *, name: str = "Influence"
) -> Axes:
    """Draws how influences, or values, are distributed over the samples of each label.

    Each label has a row: a dot at the median, a bar over the middle 50% of the samples and a thin
    line over the middle 90%. The 10% further out are not drawn, so that a few of them do not
    press all rows into points. The label with the largest median is on top; rows are blue where
    the median is positive, else vermilion.

    Args:
        influences: one number for each sample, (n,), positive = helpful.
        labels: the label of each, a number or a name, (n,).
        ax: where to draw; new axes by default, as tall as the number of labels asks for.
        name: what the numbers are called.

    Returns:
        The axes, with a row for each label, named with the number of its samples.

    Raises:
        ValueError: if shapes differ, or an influence is not finite.
    """
    values = checked_floats("influences", influences)
    classes, group = np.unique(checked_labels("labels", labels, values.size), return_inverse=True)
    levels = np.array([_levels(values[group == i]) for i in range(len(classes))])
    order = np.argsort(-levels[:, 2], kind="stable")
    low, lower, median, upper, high = levels[order].T
    counts, rows = np.bincount(group)[order], np.arange(len(order))
    names = [f"{label} ({count:,})" for label, count in zip(classes[order], counts, strict=True)]
    ax = axes_with_rows(ax, names)
    colours = np.where(median > 0, HELPFUL, HARMFUL).tolist()
    ax.axvline(0, color=GREY, linewidth=1, zorder=0)
    ax.hlines(rows, low, high, colors=colours, linewidth=1)
    ax.barh(rows, upper - lower, left=lower, color=colours, height=0.45, alpha=0.6)
    dot = min(22, (points(ax).height / len(rows)) ** 2 / 2)
    ax.scatter(median, rows, c=colours, s=dot, zorder=3)
    ax.set_xlabel(f"{name} (median, middle 50% and 90%)", parse_math=False)
    ax.ticklabel_format(axis="x", scilimits=(-3, 4))
    hide_spines(ax, "left")
    return ax


def _levels(values: Floats) -> Floats:
    levels: Floats = np.percentile(values, [5, 25, 50, 75, 95])
    return levels
