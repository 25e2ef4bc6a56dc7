"""Plots as SVG for light and for dark pages."""

import warnings
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from pydvl_datainf.evaluation import Floats
from pydvl_datainf.inverse.approximation_error import ApproximationError
from pydvl_datainf.plots import (
    block_shares,
    damping_by_block,
    error_by_block,
    influence_distribution,
)
from pydvl_datainf.report.labels import LabelCounts

INK, LIGHT_INK = "#1c2330", "#e4e8ef"
"""Colours of texts and lines on light and on dark pages, as in their style sheet."""

TEXTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
BACKGROUNDS = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")

SETTINGS = {"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "pydvl-datainf"}

MOST_BLOCKS, MOST_SHARES = 48, 30
"""Rows of a picture; a table has all blocks."""

LONGEST = 60
"""Characters of a name in a picture; longer ones would leave no room for the picture."""

ROW, MARGIN = 0.21, 0.9
"""Inches."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot in two versions.

    Attributes:
        light: a data: URL of SVG for light pages.
        dark: for dark ones.
        alt: what it shows, in words.
        note: what it leaves out.
    """

    light: str
    dark: str
    alt: str
    note: str = ""


def blocks_picture(
    labels: Sequence[str], damping: Floats, error: ApproximationError | None
) -> Picture:
    """Draws λ of each block, and its error where it is known.

    Args:
        labels: of the blocks, for people.
        damping: λ of each.
        error: against the exact inverse.

    Returns:
        The picture.
    """
    shown = shown_blocks(damping, error)
    names = [_end(labels[i]) for i in shown]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 1 if error is None else 2, squeeze=False)[0]
        damping_by_block(names, damping[shown], panels[0])
        if error is not None:
            error_by_block(names, error.errors[shown], panels[1])
            panels[1].tick_params(labelleft=False)

    alt = f"Damping λ of {len(shown)} blocks, from {damping.min():.2e} to {damping.max():.2e}"
    if error is not None:
        alt += f", and their errors, from {error.errors.min():.2g} to {error.errors.max():.2g}"
    note = "" if len(shown) == len(labels) else _left_out(len(shown), len(labels), error)
    return drawn(draw, (8.4, MARGIN + ROW * len(shown)), alt, note)


def shares_picture(labels: Sequence[str], scores: Floats) -> Picture:
    """Draws what share each block has in the influences.

    Args:
        labels: of the blocks, for people.
        scores: influences by block, (m, L, n).

    Returns:
        The picture.
    """
    names = [_end(label) for label in labels]

    def draw(figure: Figure) -> None:
        block_shares(scores, names, figure.subplots(), shown=MOST_SHARES)

    rows = min(len(labels), MOST_SHARES)
    return drawn(draw, (8.4, MARGIN + ROW * rows), "Share of each block; the table has all numbers")


def labels_picture(counts: LabelCounts, mean: Floats) -> Picture:
    """Draws how mean influences are distributed over labels.

    Args:
        counts: of the labels.
        mean: the mean influence of each training sample, (n,).

    Returns:
        The picture.
    """

    def draw(figure: Figure) -> None:
        influence_distribution(mean, counts.labels, figure.subplots(), name="Mean influence")

    alt = f"Mean influence of training samples by {counts.column}; the table has the averages"
    return drawn(draw, (6, MARGIN + 1.5 * ROW * len(counts.rows)), alt)


def shown_blocks(damping: Floats, error: ApproximationError | None) -> list[int]:
    """Which blocks a picture shows: those with the largest errors, or the ends of λ.

    Args:
        damping: λ of each block.
        error: against the exact inverse.

    Returns:
        Positions, ascending.
    """
    if len(damping) <= MOST_BLOCKS:
        return list(range(len(damping)))
    if error is not None:
        chosen = np.argsort(-error.errors, kind="stable")[:MOST_BLOCKS]
    else:
        order = np.argsort(damping, kind="stable")
        chosen = np.concatenate([order[: MOST_BLOCKS // 2], order[-MOST_BLOCKS // 2 :]])
    return sorted(chosen.tolist())


def drawn(
    draw: Callable[[Figure], None], size: tuple[float, float], alt: str, note: str = ""
) -> Picture:
    """Draws a picture, with dark and with light ink.

    Args:
        draw: onto an empty figure.
        size: width and height in inches.
        alt: what it shows, in words.
        note: what it leaves out.

    Returns:
        The picture.
    """
    settings: dict[Any, Any] = dict.fromkeys(TEXTS, INK) | dict.fromkeys(BACKGROUNDS, "none")
    stream = StringIO()
    with rc_context(settings | SETTINGS), warnings.catch_warnings():
        # A box in a picture; the table beside it has the name as it is.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return Picture(_url(svg), _url(svg.replace(INK, LIGHT_INK)), alt, note)


def _end(name: str) -> str:
    """The end of a path tells more than its beginning, which many blocks share."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _url(svg: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _left_out(shown: int, there: int, error: ApproximationError | None) -> str:
    which = "the smallest and the largest λ" if error is None else "the largest errors"
    return f"The {shown} of {there:,} blocks with {which}; the table has all."
