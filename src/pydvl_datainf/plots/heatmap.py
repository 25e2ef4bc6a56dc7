"""All scores at once, as a heat map."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes

from pydvl_datainf.evaluation import Indices
from pydvl_datainf.plots.arrays import Floats, Labels, checked_floats, checked_labels, colour_limit
from pydvl_datainf.plots.style import (
    DIVERGING,
    GREY,
    add_colour_bar,
    new_axes,
    points,
    tick_size,
    wrapped,
)

Groups: TypeAlias = list[tuple[str, Indices]]
"""Names, and the samples that bear them."""

LINE_SPACING = 8.0
"""Between lines, on average; in points. Closer ones would hide the scores."""


def score_heatmap(
    scores: Floats,
    ax: Axes | None = None,
    *,
    test_labels: Labels | None = None,
    train_labels: Labels | None = None,
    cluster: bool = True,
    limit: float | None = None,
) -> Axes:
    """Draws the influence of every training sample on every test sample as a heat map.

    Colours are centred at zero, blue = helpful. Samples of one label stand together, labels in
    their sorted order with lines between them. Within a label, or among all samples where there
    are no labels, those with similar patterns of influence stand together: they follow the leaves
    of a hierarchical clustering (average linkage) of rows, and of columns, scaled to unit length.
    That takes memory and time quadratic in the samples of a label.

    Args:
        scores: influences, (m, n).
        ax: where to draw; new axes by default.
        test_labels: the label of each test sample, a number or a name, (m,).
        train_labels: the label of each training sample, (n,).
        cluster: whether to order by clustering; else samples keep their order within a label.
        limit: the number that has the strongest colour; None = the 99th percentile of the
            absolute scores, so that a few extreme ones do not bleach all others.

    Returns:
        The axes, with the image of the sorted scores and a colour bar.

    Raises:
        ValueError: if the shapes differ, a score is not finite, or the limit is not positive.
    """
    values = checked_floats("scores", scores, 2)
    m, n = values.shape
    strongest = colour_limit(values, limit)
    tests, trains = _groups("test_labels", test_labels, m), _groups("train_labels", train_labels, n)
    rows, columns = _order(values, tests, cluster), _order(values.T, trains, cluster)
    ax = new_axes(ax)
    drawn = ax.imshow(values[np.ix_(rows, columns)], DIVERGING, vmin=-strongest, vmax=strongest)
    ax.set(aspect="auto", xticks=[], yticks=[])
    ax.set(xlabel=f"Training samples ({n:,})", ylabel=f"Test samples ({m:,})")
    place = points(ax)
    _name_groups(ax.set_yticks, ax.axhline, tests, place.height / m)
    widths = [len(name) * 0.65 * tick_size() / len(members) for name, members in trains]
    rotation = 90 if max(widths) > place.width / n else 0
    _name_groups(ax.set_xticks, ax.axvline, trains, place.width / n, rotation=rotation)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    add_colour_bar(ax, drawn, strongest, "Influence")
    return ax


def _groups(name: str, labels: Labels | None, n: int) -> Groups:
    """The samples of each label, or all of them under no name."""
    if labels is None:
        return [("", np.arange(n))]
    distinct, group = np.unique(checked_labels(name, labels, n), return_inverse=True)
    return [(wrapped(label, 20, 1), np.flatnonzero(group == i)) for i, label in enumerate(distinct)]


def _order(rows: Floats, groups: Groups, cluster: bool) -> Indices:
    """The samples, group by group."""
    return np.concatenate(
        [members[_leaves(rows[members])] if cluster else members for _, members in groups]
    )


def _leaves(rows: Floats) -> Indices:
    """The order of the leaves of a hierarchical clustering of the rows' directions."""
    if len(rows) == 1:
        return np.arange(1)
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import pdist

    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    leaves: Indices = leaves_list(linkage(pdist(units), "average"))
    return leaves


def _name_groups(
    set_ticks: Callable[..., Any],
    draw_line: Callable[..., Any],
    groups: Groups,
    room: float,
    rotation: int = 0,
) -> None:
    """Names groups at their middle, with lines between them, as far as there is room.

    Args:
        set_ticks: of an axis.
        draw_line: across it.
        groups: in their order.
        room: of a sample, in points.
        rotation: of the names, in degrees.
    """
    ends = np.cumsum([len(members) for _, members in groups])
    middles = (np.append(0, ends[:-1]) + ends - 1) / 2
    named: dict[float, str] = {}
    for middle, (name, _) in zip(middles, groups, strict=True):
        if not named or (middle - max(named)) * room >= 1.2 * tick_size():
            named[middle] = name
    set_ticks(list(named), list(named.values()), rotation=rotation, parse_math=False)
    if ends[-1] * room >= len(groups) * LINE_SPACING:
        for end in ends[:-1]:
            draw_line(end - 0.5, color=GREY, linewidth=0.8)
