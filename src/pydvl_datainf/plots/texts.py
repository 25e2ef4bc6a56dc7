"""Training texts that had an influence."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pydvl_datainf.plots.arrays import (
    Floats,
    checked_captions,
    checked_floats,
    most_influential,
)
from pydvl_datainf.plots.style import (
    GREY,
    HARMFUL,
    HELPFUL,
    hide_spines,
    literal,
    new_axes,
    signed,
    wrapped,
)

GAP = 0.4
"""Between helpful and harmful texts, in rows."""
LINE = 0.16
"""Height of a line of text, in inches."""


def influential_texts(
    query: str,
    texts: Sequence[str],
    influences: Floats,
    ax: Axes | None = None,
    *,
    k: int = 5,
    captions: Sequence[Any] | None = None,
    width: int = 50,
    lines: int = 2,
) -> Axes:
    """Draws the training texts of largest and of smallest influence on a query, with bars of it.

    Texts are wrapped, shortened at their end where they are longer, and shown as they are, but for
    white space, which is one space each, and control characters, which are left out. Characters
    that the font of `rcParams` lacks are drawn as boxes, with a warning of matplotlib's.

    Args:
        query: a text, which becomes the title.
        texts: the training texts, n of them.
        influences: of each on the query, (n,), positive = helpful.
        ax: where to draw; new axes by default, as tall as the number of lines asks for.
        k: how many texts at each end. Where n < 2k, the larger half of them counts as helpful.
        captions: what stands before each training text in square brackets, such as its label,
            (n,).
        width: of a line, in characters.
        lines: how many of them a text has at most.

    Returns:
        The axes: bars, blue where positive, else vermilion, the most helpful text on top and the
        most harmful one at the bottom, with influences to their left and texts to their right.

    Raises:
        ValueError: if the numbers of texts, influences and captions differ, if an influence is not
            finite, or if k is not positive.
    """
    values = checked_floats("influences", influences)
    if len(texts) != values.size:
        raise ValueError(f"there are {values.size} influences, but {len(texts)} texts")
    before = [
        f"[{caption}] " if literal(caption) else ""
        for caption in checked_captions(captions, values.size)
    ]
    helpful, harmful = most_influential(values, k)
    order = np.concatenate([helpful, harmful[::-1]])
    rows = np.arange(len(order)) + (np.arange(len(order)) >= len(helpful)) * GAP
    ax = new_axes(ax, height=LINE * lines * (len(order) + 1) + 1.2)
    colours = np.where(values[order] > 0, HELPFUL, HARMFUL)
    ax.barh(rows, values[order], color=colours, height=0.6)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set_yticks(rows, [signed(value) for value in values[order]], fontsize="small")
    for row, i in zip(rows, order, strict=True):
        ax.annotate(
            wrapped(before[i] + texts[i], width, lines),
            (1, row),
            (6, 0),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            verticalalignment="center",
            fontsize="small",
            parse_math=False,
        )
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    ax.ticklabel_format(axis="x", scilimits=(-3, 4))
    ax.set_ylim(rows[-1] + 0.5, -0.5)
    ax.set_title(
        wrapped(f"Query: {query}", width + 10, 3), fontsize="medium", loc="left", parse_math=False
    )
    ax.set_xlabel("Influence")
    hide_spines(ax, "left")
    return ax
