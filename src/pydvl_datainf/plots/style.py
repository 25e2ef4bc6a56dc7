"""How plots look: colours, axes, legends, and names that are shown as they are."""

import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D, Bbox

# Okabe and Ito's colours, which people with any of the common colour blindnesses tell apart,
# without the black and the yellow that vanish on a dark or a white page. Line styles and markers
# differ as well, for prints in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
HELPFUL, HARMFUL = COLOURS[:2]
DIVERGING = "RdBu"
"""Red below zero and blue above, like `HARMFUL` and `HELPFUL`."""
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0, HARMFUL), (0.5, f"{HARMFUL}00"), (0.5, f"{HELPFUL}00"), (1, HELPFUL)]
)
"""Transparent at zero, to be drawn over something."""
GREY = "0.6"
"""Lines to compare with; visible on white and on black."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What no font can draw, or no SVG may hold, such as the halves of surrogate pairs."""


def new_axes(ax: Axes | None, height: float | None = None) -> Axes:
    """The given axes, or those of a new figure.

    Args:
        ax: given axes.
        height: of a new figure, in inches; None = the usual one.

    Returns:
        Axes.
    """
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # looks for a display; drawing on given axes needs none

    size = None if height is None else (mpl.rcParams["figure.figsize"][0], height)
    return plt.subplots(figsize=size, layout="constrained")[1]


def axes_with_rows(ax: Axes | None, names: Sequence[str]) -> Axes:
    """The given axes, or new ones of a fitting height, with named rows 0, 1, ... from the top down.

    Names have a size that fits; where none is legible, only every other, third, ... row is named.

    Args:
        ax: given axes.
        names: one for each row.

    Returns:
        Axes.
    """
    ax = new_axes(ax, min(1.2 + 0.22 * len(names), 12))
    room = points(ax).height / len(names)
    size = min(max(0.85 * room, 5.0), tick_size())
    step = math.ceil(size / room)
    shown = [literal(name) for name in names[::step]]
    ax.set_yticks(range(0, len(names), step), shown, fontsize=size, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return ax


def points(ax: Axes) -> Bbox:
    """The place of axes in points, 1/72 inch, as it is before any layout.

    Args:
        ax: axes.

    Returns:
        A box, with a width and a height.
    """
    return ax.bbox.transformed(Affine2D().scale(72 / ax.figure.dpi))


def tick_size() -> float:
    """The size of names at axes.

    Returns:
        Points.
    """
    return FontProperties(size=mpl.rcParams["ytick.labelsize"]).get_size_in_points()


def new_figure(figure: Figure | SubFigure | None, size: tuple[float, float]) -> Figure | SubFigure:
    """The given figure, or a new one.

    Args:
        figure: given figure.
        size: width and height of a new figure, in inches.

    Returns:
        A figure.
    """
    if figure is not None:
        return figure
    import matplotlib.pyplot as plt

    return plt.figure(figsize=size, layout="constrained")


def hide_spines(ax: Axes, *sides: str) -> None:
    """Leaves out the lines at the top, at the right and at further sides.

    Args:
        ax: axes.
        *sides: "left" or "bottom".
    """
    ax.spines[["top", "right", *sides]].set_visible(False)


def literal(text: Any) -> str:
    """A text of the caller's on one line, without characters that no font has.

    Args:
        text: anything that has a name.

    Returns:
        The text, to be drawn with `parse_math=False`.
    """
    return CONTROL.sub("", " ".join(str(text).split()))


def signed(value: float) -> str:
    """A number in three digits, with its sign.

    Args:
        value: such as an influence.

    Returns:
        A text.
    """
    return f"{value:+.3g}".replace("-", "−")


def wrapped(text: Any, width: int, lines: int) -> str:
    """A text of the caller's on a few lines, with an ellipsis where it does not end there.

    Args:
        text: anything that has a name.
        width: of a line, in characters.
        lines: how many at most.

    Returns:
        The text, to be drawn with `parse_math=False`.
    """
    return "\n".join(textwrap.wrap(literal(text), width, max_lines=lines, placeholder=" …"))


def add_legend(ax: Axes, handles: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend without frame, in which names are shown as they are.

    Args:
        ax: axes.
        handles: what is named.
        names: one for each.
        **options: of `Axes.legend`.
    """
    # matplotlib leaves out names that begin with an underscore, so they are set afterwards.
    legend = ax.legend(handles, ["?"] * len(handles), **{"frameon": False, **options})
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=literal(name), parse_math=False)


def add_colour_bar(ax: Axes, drawn: AxesImage, limit: float, name: str) -> None:
    """A bar that explains colours centred at zero, pointed where numbers lie beyond the limit.

    Args:
        ax: axes beside which the bar stands.
        drawn: what is coloured.
        limit: the number of the strongest colour.
        name: what is coloured by.
    """
    beyond = np.abs(drawn.get_array()).max() > limit  # type: ignore[arg-type]
    bar = ax.figure.colorbar(drawn, ax=ax, label=name, extend="both" if beyond else "neither")
    bar.ax.ticklabel_format(scilimits=(-3, 4))
    bar.outline.set_visible(False)
