"""Training images that had an influence, and what in them had it."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from pydvl_datainf.evaluation import as_array
from pydvl_datainf.plots.arrays import (
    Floats,
    checked_captions,
    checked_floats,
    colour_limit,
    most_influential,
)
from pydvl_datainf.plots.style import (
    HARMFUL,
    HELPFUL,
    SIGNED,
    add_colour_bar,
    new_axes,
    new_figure,
    signed,
    wrapped,
)

Channels: TypeAlias = Literal["first", "last"]

AXES = {"first": 0, "last": -1}
LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def influential_images(
    query: Any,
    images: Sequence[Any],
    influences: Floats,
    figure: Figure | SubFigure | None = None,
    *,
    k: int = 5,
    captions: Sequence[Any] | None = None,
    query_caption: Any = "",
    channels: Channels | None = None,
    limits: tuple[float, float] | None = None,
) -> list[Axes]:
    """Draws a query image and the training images of largest and of smallest influence on it.

    Args:
        query: an image, (h, w), (c, h, w) or (h, w, c) with c = 1, 3 or 4 channels.
        images: the training images, n of such shapes, not necessarily of one size. Only those that
            are shown are read.
        influences: of each on the query, (n,), positive = helpful.
        figure: where to draw, empty; a new one by default.
        k: how many images at each end. Where n < 2k, the larger half of them counts as helpful.
        captions: what stands below each training image, such as its label, (n,).
        query_caption: what stands below the query.
        channels: where the channels are; None = where there is an axis of length 1, 3 or 4, which
            must be either the first or the last.
        limits: the numbers that are drawn black and white. None = 0 and 255 for bytes, 0 and 1 for
            numbers within them, else the smallest and the largest number in all images shown.

    Returns:
        The axes of the query, of the most helpful images, most helpful first, and of the most
        harmful ones, most harmful first, each with its influence as title.

    Raises:
        ValueError: if the numbers of images, influences and captions differ, if an influence is
            not finite, if an array is no image, or if k is not positive.
    """
    values = checked_floats("influences", influences)
    if len(images) != values.size:
        raise ValueError(f"there are {values.size} influences, but {len(images)} images")
    below = checked_captions(captions, values.size)
    helpful, harmful = most_influential(values, k)
    order = [*helpful, *harmful]
    arrays = [as_array(image) for image in (query, *(images[i] for i in order))]
    pixels = [_pixels(array, channels) for array in arrays]
    query_ax, *panels = _panels(figure, len(helpful), len(harmful))
    for ax, image in zip((query_ax, *panels), pixels, strict=True):
        _show(ax, image, limits or _limits(arrays))
    query_ax.set_title("Query")
    query_ax.set_xlabel(wrapped(query_caption, 22, 4), parse_math=False)
    for ax, i in zip(panels, order, strict=True):
        colour = HELPFUL if values[i] > 0 else HARMFUL
        ax.set_title(signed(values[i]), color=colour, fontsize="medium", pad=3)
        ax.set_xlabel(wrapped(below[i], 14, 2), fontsize="small", labelpad=2, parse_math=False)
    panels[0].set_ylabel("most helpful")
    if harmful.size:
        panels[helpful.size].set_ylabel("most harmful")
    return [query_ax, *panels]


def perturbation_image(
    image: Any,
    perturbation: Floats,
    ax: Axes | None = None,
    *,
    channels: Channels | None = None,
    limit: float | None = None,
) -> Axes:
    """Draws how an influence changes with each pixel of a training image, over the image in grey.

    What is drawn is the sum of the derivatives over the channels, which is the derivative by the
    pixel's brightness. It is transparent at zero and opaque from the limit on; blue where a
    brighter pixel makes the training image more helpful, vermilion where it makes it more harmful.

    Args:
        image: a training image, (h, w), (c, h, w) or (h, w, c) with c = 1, 3 or 4 channels.
        perturbation: the derivative of its influence on a query by the image, of its shape; as
            `influences(..., mode="perturbation")` gives it for a query and a training image.
        ax: where to draw; new axes by default.
        channels: where the channels are; None = where there is an axis of length 1, 3 or 4, which
            must be either the first or the last.
        limit: the number that has the strongest colour; None = the 99th percentile of the
            absolute numbers drawn.

    Returns:
        The axes, with the image, the derivatives and a colour bar.

    Raises:
        ValueError: if the shapes differ, if it is no image, or if a number is not finite.
    """
    array, slopes = as_array(image), as_array(perturbation)
    if array.shape != slopes.shape:
        raise ValueError(
            f"image and perturbation need one shape, but have {array.shape} and {slopes.shape}"
        )
    pixels, by_pixel = _pixels(array, channels), _pixels(slopes, channels)
    if pixels.ndim == 3:
        pixels, by_pixel = pixels[..., :3] @ LUMINANCE, by_pixel[..., :3].sum(axis=-1)
    strongest = colour_limit(by_pixel, limit)
    ax = new_axes(ax)
    _show(ax, pixels, _limits([array]))
    drawn = ax.imshow(by_pixel, SIGNED, vmin=-strongest, vmax=strongest)
    add_colour_bar(ax, drawn, strongest, "Derivative of the influence")
    return ax


def _panels(figure: Figure | SubFigure | None, above: int, below: int) -> list[Axes]:
    """Axes of the query at the left, of `above` images in a row and of `below` ones under it."""
    figure = new_figure(figure, (1.1 * above + 1.6, 3.2))
    grid = figure.add_gridspec(2, above + 1, width_ratios=[1.5, *[1] * above])
    cells = [grid[:, 0], *(grid[0, i + 1] for i in range(above))]
    return [figure.add_subplot(cell) for cell in (*cells, *(grid[1, i + 1] for i in range(below)))]


def _show(ax: Axes, image: Floats, limits: tuple[float, float]) -> None:
    low, high = limits
    stretched = (image - low) / (high - low or 1.0)
    ax.imshow(np.clip(stretched, 0, 1), cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _pixels(image: npt.NDArray[Any], channels: Channels | None) -> Floats:
    """The image in float64, (h, w), or (h, w, c) with c = 3 or 4."""
    if image.ndim == 2:
        return checked_floats("an image", image, 2)
    if image.ndim != 3:
        raise ValueError(
            f"an image must have shape (h, w), (c, h, w) or (h, w, c), got {image.shape}"
        )
    pixels = checked_floats("an image", image, 3)
    last = pixels if _channels_last(pixels.shape, channels) else np.moveaxis(pixels, 0, -1)
    return last[..., 0] if last.shape[-1] == 1 else last


def _channels_last(shape: tuple[int, ...], channels: Channels | None) -> bool:
    """Whether the last axis of an image holds its channels; else the first one does."""
    possible = {end for end, axis in AXES.items() if shape[axis] in (1, 3, 4)}
    wanted = possible if channels is None else possible & {channels}
    if len(wanted) != 1:
        raise ValueError(
            f"an image needs one axis of 1, 3 or 4 channels, the first or the last, got {shape}"
            + ('; pass channels="first" or "last"' if len(wanted) > 1 else "")
        )
    return wanted == {"last"}


def _limits(images: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    """What is black and what is white in all the images."""
    if all(image.dtype == np.uint8 for image in images):
        return 0, 255
    low = min(float(image.min()) for image in images)
    high = max(float(image.max()) for image in images)
    return (0, 1) if low >= 0 and high <= 1 else (low, high)
