from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pydvl_datainf.plots import (
    HARMFUL,
    HELPFUL,
    influential_images,
    influential_texts,
    perturbation_image,
)
from pydvl_datainf.plots.arrays import most_influential

INFLUENCES = np.array([0.5, -3.0, 2.0, 0.5, -1.0, 0.1])
RNG = np.random.default_rng(0)


@pytest.fixture
def figure():
    return Figure()


@pytest.fixture
def ax(figure):
    return figure.subplots()


def shown(ax, layer=0):
    return np.asarray(ax.images[layer].get_array())


def titles(axes):
    return [ax.get_title() for ax in axes]


# Which samples


def test_the_most_influential_are_largest_and_smallest_first():
    helpful, harmful = most_influential(INFLUENCES, 3)
    assert helpful.tolist() == [2, 0, 3]  # of 0.5 and 0.5 the first one first
    assert harmful.tolist() == [1, 4, 5]


@pytest.mark.parametrize(
    ("values", "helpful", "harmful"),
    [
        ([1.0], [0], []),
        ([1.0, 2.0], [1], [0]),
        ([1.0, 3.0, 2.0], [1, 2], [0]),
        ([1.0, 1.0, 1.0], [0, 1], [2]),
    ],
)
def test_no_sample_is_both_helpful_and_harmful(values, helpful, harmful):
    found = most_influential(np.array(values), 5)
    assert [part.tolist() for part in found] == [helpful, harmful]


# Images


def test_the_images_of_the_largest_and_the_smallest_influence_are_drawn(figure):
    images, query = RNG.random((6, 4, 5)), RNG.random((4, 5))
    captions = [f"caption {i}" for i in range(6)]
    axes = influential_images(
        query, images, INFLUENCES, figure, k=2, captions=captions, query_caption="asked"
    )
    assert axes == figure.axes
    np.testing.assert_array_equal(shown(axes[0]), query)
    assert axes[0].get_xlabel() == "asked"
    for panel, i in zip(axes[1:], [2, 0, 1, 4], strict=True):
        np.testing.assert_array_equal(shown(panel), images[i])
        assert panel.get_xlabel() == f"caption {i}"
        assert panel.images[0].get_clim() == (0, 1)
    assert titles(axes) == ["Query", "+2", "+0.5", "−3", "−1"]
    colours = [panel.title.get_color() for panel in axes[1:]]
    assert colours == [HELPFUL, HELPFUL, HARMFUL, HARMFUL]
    rows = [(ax.get_ylabel(), ax.get_subplotspec().rowspan.start) for ax in (axes[1], axes[3])]
    assert rows == [("most helpful", 0), ("most harmful", 1)]


def test_one_training_image_is_drawn_once(figure):
    axes = influential_images(np.zeros((2, 2)), [np.ones((2, 2))], [-0.25], figure)
    assert titles(axes) == ["Query", "−0.25"]


def test_only_images_that_are_shown_are_read(figure):
    images = [None, *RNG.random((2, 3, 3)), None]
    axes = influential_images(images[1], images, np.array([0, 5, -5, 0.1]), figure, k=1)
    assert titles(axes) == ["Query", "+5", "−5"]


COLOUR = RNG.random((6, 5, 3))
BYTES = (COLOUR * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (COLOUR, None, COLOUR),
        (COLOUR.transpose(2, 0, 1), None, COLOUR),
        (torch.tensor(COLOUR.transpose(2, 0, 1)), None, COLOUR),
        (BYTES, None, BYTES / 255),
        (Image.fromarray(BYTES), None, BYTES / 255),
        (COLOUR[..., :1], None, COLOUR[..., 0]),
        (COLOUR[..., 0][None], None, COLOUR[..., 0]),
        (COLOUR[..., 0] > 0.5, None, COLOUR[..., 0] > 0.5),
        (COLOUR[:3], "last", COLOUR[:3]),
        (COLOUR[:3], "first", COLOUR[:3].transpose(1, 2, 0)),
    ],
)
def test_images_of_any_layout_are_drawn_with_their_channels_last(image, channels, expected, figure):
    query, only = influential_images(image, [image], [1.0], figure, channels=channels)
    np.testing.assert_allclose(shown(query), expected)
    np.testing.assert_allclose(shown(only), expected)


def test_images_beyond_zero_and_one_are_stretched_alike(figure):
    query, only = influential_images(np.array([[-1.0, 0]]), [np.array([[1, 3.0]])], [1.0], figure)
    assert shown(query).tolist() == [[0, 0.25]]
    assert shown(only).tolist() == [[0.5, 1]]


def test_limits_are_black_and_white(figure):
    image = np.array([[-1.0, 0, 1, 2]])
    query, _ = influential_images(image, [image], [1.0], figure, limits=(0, 2))
    assert shown(query).tolist() == [[0, 0, 0.5, 1]]


def test_an_image_of_one_number_is_drawn(figure):
    query, _ = influential_images(np.full((2, 2), 7.0), [np.full((2, 2), 7.0)], [1.0], figure)
    assert shown(query).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.ones(4), r"must have shape \(h, w\).*got \(4,\)"),
        (np.ones((2, 3, 4, 5)), r"got \(2, 3, 4, 5\)"),
        (np.ones((5, 6, 7)), r"one axis of 1, 3 or 4 channels.*got \(5, 6, 7\)$"),
        (np.ones((3, 6, 4)), 'pass channels="first" or "last"'),
        (np.full((2, 2), np.nan), "4 of 4 numbers in an image are not finite"),
    ],
)
def test_what_is_no_image_is_refused(image, message, figure, ax):
    with pytest.raises(ValueError, match=message):
        influential_images(image, [image], [1.0], figure)
    with pytest.raises(ValueError, match=message):
        perturbation_image(image, image, ax)


SHARED_REFUSALS = pytest.mark.parametrize(
    ("count", "influences", "options", "message"),
    [
        (3, np.ones(2), {}, "2 influences, but 3"),
        (2, np.ones(2), {"captions": ["one"]}, "2 influences, but 1 captions"),
        (2, np.array([1, np.nan]), {}, "1 of 2 numbers in influences are not finite"),
        (2, np.ones(2), {"k": 0}, "k must be at least 1, got 0"),
        (0, np.array([]), {}, "not empty"),
    ],
)


@SHARED_REFUSALS
def test_images_that_do_not_fit_their_influences_are_refused(
    count, influences, options, message, figure
):
    with pytest.raises(ValueError, match=message):
        influential_images(COLOUR, [COLOUR] * count, influences, figure, **options)


# Perturbations


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_derivatives_are_summed_over_channels_and_drawn_over_the_grey_image(axes, ax):
    slopes = RNG.normal(size=(6, 5, 3))
    perturbation_image(COLOUR.transpose(axes), slopes.transpose(axes), ax)
    grey = 0.299 * COLOUR[..., 0] + 0.587 * COLOUR[..., 1] + 0.114 * COLOUR[..., 2]
    np.testing.assert_allclose(shown(ax, 0), grey)
    by_pixel = slopes[..., 0] + slopes[..., 1] + slopes[..., 2]
    np.testing.assert_allclose(shown(ax, 1), by_pixel)
    limit = np.percentile(np.abs(by_pixel), 99)
    assert ax.images[1].get_clim() == (-limit, limit)


def test_derivatives_are_transparent_at_zero_blue_above_and_vermilion_below(ax):
    perturbation_image(np.zeros((1, 3)), np.array([[-2.0, 0, 2]]), ax, limit=2)
    below, zero, above = ax.images[1].to_rgba(shown(ax, 1))[0]
    np.testing.assert_allclose(below, mpl.colors.to_rgba(HARMFUL), atol=1e-6)
    np.testing.assert_allclose(above, mpl.colors.to_rgba(HELPFUL), atol=1e-6)
    assert zero[3] < 0.01


def test_derivatives_of_zero_are_drawn(ax):
    perturbation_image(np.zeros((2, 2)), np.zeros((2, 2)), ax)
    assert ax.images[1].get_clim() == (-1, 1)


def test_a_perturbation_of_another_shape_is_refused(ax):
    with pytest.raises(ValueError, match=r"have \(2, 3\) and \(3, 2\)"):
        perturbation_image(np.ones((2, 3)), np.ones((3, 2)), ax)
    with pytest.raises(ValueError, match="4 of 4 numbers in"):
        perturbation_image(np.ones((2, 2)), np.full((2, 2), np.nan), ax)


# Texts

TEXTS = ["zero", "one", "two", "three", "four", "five"]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_texts_stand_beside_the_bars_of_their_influences(ax):
    influential_texts("asked", TEXTS, INFLUENCES, ax, k=2)
    assert texts(ax) == ["two", "zero", "four", "one"]  # the most harmful at the bottom
    assert [bar.get_width() for bar in ax.patches] == [2, 0.5, -1, -3]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    np.testing.assert_allclose(middles, ax.get_yticks())
    np.testing.assert_allclose([text.xy[1] for text in ax.texts], middles)
    assert np.diff(middles)[1] > np.diff(middles)[0]  # a gap between helpful and harmful
    assert ax.yaxis_inverted()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["+2", "+0.5", "−1", "−3"]
    colours = [mpl.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert colours == [HELPFUL, HELPFUL, HARMFUL, HARMFUL]
    assert ax.get_title(loc="left") == "Query: asked"


def test_captions_stand_before_texts(ax):
    influential_texts("q", TEXTS, INFLUENCES, ax, k=1, captions=list("abcdef"))
    assert texts(ax) == ["[c] two", "[b] one"]


def test_a_caption_of_zero_is_shown(ax):
    influential_texts("q", ["text"], [1.0], ax, captions=[0])
    assert texts(ax) == ["[0] text"]


def test_one_text_is_drawn_once(ax):
    influential_texts("q", ["only"], [-1.0], ax)
    assert texts(ax) == ["only"]


def test_long_texts_are_wrapped_and_shortened(ax):
    long = "seven letters " * 20
    influential_texts(long, [long], [1.0], ax, width=20, lines=2)
    assert texts(ax) == ["seven letters seven\nletters seven …"]
    query = ax.get_title(loc="left").split("\n")
    assert len(query) == 3
    assert max(map(len, query)) <= 30


def test_texts_are_shown_as_they_are(ax):
    odd = "costs $5, not $6; {\\alpha}_x^2\n\tnew \x1b[31mline"
    influential_texts(odd, [odd], [1.0], ax, captions=["$y$"], width=80)
    plain = "costs $5, not $6; {\\alpha}_x^2 new [31mline"
    assert texts(ax) == [f"[$y$] {plain}"]
    assert ax.get_title(loc="left") == f"Query: {plain}"
    drawn = [*ax.texts, ax._left_title]
    assert not any(text.get_parse_math() for text in drawn)
    ax.figure.draw_without_rendering()  # as a formula it would not parse


def test_an_empty_text_is_drawn(ax):
    influential_texts("", ["", "word"], [1.0, -1.0], ax)
    assert texts(ax) == ["", "word"]


@pytest.mark.parametrize("k", [1, 5, 8])
def test_texts_overlap_neither_bars_nor_each_other(k):
    mpl.pyplot.switch_backend("agg")
    long = ["many words of a training text " * 9] * 16
    ax = influential_texts("a query " * 30, long, np.linspace(1, -1, 16), k=k)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    page = ax.figure.bbox
    assert all(box.x0 > ax.bbox.x1 and box.x1 <= page.x1 for box in boxes)
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    title = ax._left_title.get_window_extent()
    assert title.x1 <= page.x1
    assert title.y0 > boxes[0].y1
    mpl.pyplot.close(ax.figure)


@SHARED_REFUSALS
def test_texts_that_do_not_fit_their_influences_are_refused(
    count, influences, options, message, ax
):
    with pytest.raises(ValueError, match=message):
        influential_texts("q", ["text"] * count, influences, ax, **options)
