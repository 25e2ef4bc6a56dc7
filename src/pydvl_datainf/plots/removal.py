"""What becomes of a model when samples are removed by their value."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from pydvl_datainf.plots.arrays import Floats, checked_floats
from pydvl_datainf.plots.style import (
    COLOURS,
    MARKERS,
    STYLES,
    add_legend,
    hide_spines,
    new_axes,
)

if TYPE_CHECKING:
    import pandas as pd


def removal_curves(
    scores: "pd.DataFrame | Mapping[str, Floats]",
    ax: Axes | None = None,
    *,
    shares: Floats | None = None,
    name: str = "Test score",
) -> Axes:
    """Draws the score of a model against the share of the training set that was removed.

    Each method has a line with markers, the mean over repetitions, and a band of one standard
    deviation (of the sample, with r - 1) to either side; no band where there is one repetition.

    Args:
        scores: one of the two frames of pyDVL's `run_removal_experiment`: a row for each method
            and repetition, a column for each share removed, and the column `method_name`, which is
            the name of a class. Or for each method an array of scores, (r, s), of r repetitions
            and s shares.
        ax: where to draw; new axes by default.
        shares: the shares removed, between 0 and 1, (s,); with arrays only.
        name: what the score is called.

    Returns:
        The axes.

    Raises:
        ValueError: if the shapes differ, a score is not finite, or shares are missing or given
            twice.
    """
    removed, by_method = _by_method(scores, shares)
    order = np.argsort(removed)
    ax = new_axes(ax)
    looks = zip(cycle(COLOURS), cycle(STYLES), cycle(MARKERS), strict=False)
    for values, (colour, style, marker) in zip(by_method.values(), looks, strict=False):
        mean = values.mean(axis=0)[order]
        ax.plot(removed[order], mean, color=colour, linestyle=style, marker=marker, markersize=5)
        if len(values) > 1:
            spread = values.std(axis=0, ddof=1)[order]
            band = (mean - spread, mean + spread)
            ax.fill_between(removed[order], *band, color=colour, alpha=0.15, linewidth=0)
    add_legend(ax, ax.lines, list(by_method))
    ax.set_xlabel("Share of the training set removed")
    ax.set_ylabel(name, parse_math=False)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    hide_spines(ax)
    return ax


def _by_method(
    scores: "pd.DataFrame | Mapping[str, Floats]", shares: Floats | None
) -> tuple[Floats, dict[str, Floats]]:
    """The shares removed, (s,), and for each method its scores, (r, s)."""
    if isinstance(scores, Mapping) == (shares is None):
        raise ValueError("pass shares along with arrays of scores, and only with them")
    if not isinstance(scores, Mapping):
        scores, shares = _arrays(scores)
    removed = checked_floats("shares", shares)  # type: ignore[arg-type]
    checked = {name: checked_floats(f"the scores {name!r}", scores[name], 2) for name in scores}
    for name, values in checked.items():
        if values.shape[1] != removed.size:
            raise ValueError(
                f"the scores {name!r} need a column for each of {removed.size} shares, but have "
                f"shape {values.shape}"
            )
    return removed, checked


def _arrays(frame: "pd.DataFrame") -> tuple[dict[str, Floats], Floats]:
    """The scores of each method, (r, s), and the shares removed, (s,)."""
    if "method_name" not in frame:
        raise ValueError(f"a frame needs a column method_name, but has only {list(frame.columns)}")
    shares = frame.columns.drop("method_name")
    methods = frame.groupby("method_name")
    return {str(method): rows[shares].to_numpy() for method, rows in methods}, shares.to_numpy()
