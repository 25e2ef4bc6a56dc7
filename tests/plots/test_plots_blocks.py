from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from pydvl_datainf.plots import block_shares, damping_by_block, error_by_block, shares_of_sum

LAYER = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.default"


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(3, 4, 5)) * np.array([1, 10, 0.1, 3])[:, None]


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def test_shares_are_those_worked_out_by_hand():
    # Sums 4 and 0 of two pairs: (3·4 + 1·0) / 16 and (1·4 - 1·0) / 16.
    scores = np.array([[[3.0, 1.0], [1.0, -1.0]]])
    np.testing.assert_allclose(shares_of_sum(scores), [0.75, 0.25])


def test_shares_are_what_regression_on_the_sum_explains(scores):
    """The share is the slope of s_l on s without intercept."""
    total = scores.sum(axis=1).ravel()
    slopes = [
        np.linalg.lstsq(total[:, None], scores[:, i].ravel(), rcond=None)[0][0] for i in range(4)
    ]
    np.testing.assert_allclose(shares_of_sum(scores), slopes)
    assert shares_of_sum(scores).sum() == pytest.approx(1)
    wrong = np.abs(scores).sum(axis=(0, 2)) / np.abs(scores).sum()
    assert not np.allclose(shares_of_sum(scores), wrong, atol=0.01)  # absolute shares are others


def test_a_block_against_the_sum_has_a_negative_share():
    scores = np.array([[[3.0, 3.0], [-1.0, -1.0]]])
    np.testing.assert_allclose(shares_of_sum(scores), [1.5, -0.5])


def test_bars_are_the_shares_and_diamonds_those_of_the_absolute_influences(scores, ax):
    block_shares(scores, ["a", "b", "c", "d"], ax)
    np.testing.assert_allclose(widths(ax), shares_of_sum(scores))
    absolute = [np.abs(scores[:, i]).sum() / np.abs(scores).sum() for i in range(4)]
    offsets = ax.collections[0].get_offsets()
    np.testing.assert_allclose(offsets, np.stack([absolute, range(4)], axis=1))
    assert rows(ax) == ["a", "b", "c", "d"]
    assert ax.get_ylim() == (3.5, -0.5)  # the first block on top


def test_small_blocks_are_added_up_in_one_row(scores, ax):
    block_shares(scores, ["a", "b", "c", "d"], ax, shown=2)
    a, b, c, d = shares_of_sum(scores)
    np.testing.assert_allclose(widths(ax), [b, d, a + c])
    assert rows(ax) == ["b", "d", "2 others"]
    x, _ = ax.collections[0].get_offsets().T
    assert x.sum() == pytest.approx(1)


def test_one_block_has_all_of_the_influence_and_float32_is_summed_in_float64(ax):
    block_shares(np.full((2, 1, 3), 0.1, dtype=np.float32), ["only"], ax)
    assert widths(ax) == [1]


@pytest.mark.parametrize("draw", [damping_by_block, error_by_block])
def test_blocks_are_named_in_short_and_in_the_given_order(draw, ax):
    draw([LAYER.format(i) for i in range(3)], np.array([0.1, 0.3, 0.2]), ax)
    assert rows(ax) == [f"layers.{i}.self_attn.q_proj · lora_A" for i in range(3)]


def test_damping_is_drawn_on_a_logarithmic_axis(ax):
    damping_by_block(["a", "b"], np.array([1e-5, 0.1]), ax)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[1e-5, 0], [0.1, 1]])
    assert ax.get_xscale() == "log"


def test_errors_are_bars_from_zero(ax):
    error_by_block(["a", "b"], np.array([0.0, 0.4]), ax)
    assert widths(ax) == [0, 0.4]
    assert [bar.get_x() for bar in ax.patches] == [0, 0]
    assert ax.get_xscale() == "linear"


def test_damping_and_errors_stand_side_by_side():
    left, right = Figure(layout="constrained").subplots(1, 2, sharey=True)
    names = [f"block{i}" for i in range(30)]
    damping_by_block(names, np.ones(30), left)
    error_by_block(names, np.ones(30), right)
    left.figure.draw_without_rendering()
    assert rows(left) == names
    assert rows(right) == []  # named at the left
    assert left.get_ylim() == right.get_ylim() == (29.5, -0.5)


def test_names_of_hundreds_of_blocks_do_not_touch():
    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = damping_by_block([f"block{i}" for i in range(224)], np.ones(224), figure.subplots())
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) > 20
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))


@pytest.mark.parametrize(
    ("draw", "numbers", "message"),
    [
        (damping_by_block, np.array([1.0, 0.0]), "damping is positive, but the smallest is 0"),
        (damping_by_block, np.array([1.0, np.nan]), "1 of 2 numbers in damping"),
        (damping_by_block, np.ones(3), "numbers of 3 blocks, but 2 names"),
        (error_by_block, np.array([1.0, -0.1]), "not negative, but the smallest is -0.1"),
        (error_by_block, np.array([np.inf, 0.1]), "1 of 2 numbers in errors"),
        (error_by_block, np.ones((2, 1)), "array of 1 axes"),
        (block_shares, np.ones((2, 3, 2)), "numbers of 3 blocks, but 2 names"),
        (block_shares, np.ones((2, 2)), "array of 3 axes"),
        (block_shares, np.full((1, 2, 1), np.nan), "2 of 2 numbers in scores"),
        (block_shares, np.array([[[1.0], [-1.0]]]), "all zero when summed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, numbers, message, ax):
    blocks = ["a", "b"]
    arguments = (numbers, blocks) if draw is block_shares else (blocks, numbers)
    with pytest.raises(ValueError, match=message):
        draw(*arguments, ax)


def test_at_least_one_block_must_be_shown(scores, ax):
    with pytest.raises(ValueError, match="shown must be at least 1, got 0"):
        block_shares(scores, list("abcd"), ax, shown=0)
