import numpy as np
import pytest

from pydvl_datainf.plots import lds_of_methods, predicted_against_actual

PREDICTED, ACTUAL = np.array([-1.0, 0.0, 1.0, 2.0]), np.array([3.0, 4.0, 4.0, 6.0])


def test_each_subset_is_a_point_and_the_line_is_that_of_least_squares(ax):
    assert predicted_against_actual(PREDICTED, ACTUAL, ax) is ax
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), np.stack([PREDICTED, ACTUAL], 1))
    slope, intercept = np.polyfit(PREDICTED, ACTUAL, 1)
    level, fitted = (line.get_xydata() for line in ax.lines)
    np.testing.assert_allclose(fitted, [(x, intercept + slope * x) for x in (-1, 2)])
    np.testing.assert_allclose(level, [(-1, 2.75), (2, 5.75)])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1", "0.90"]


@pytest.mark.parametrize(
    ("predicted", "actual", "told"),
    [
        (PREDICTED[:3], ACTUAL, "3 predicted changes and 4 losses"),
        (np.zeros(4), ACTUAL, "all predicted changes are equal"),
        (PREDICTED, np.full(4, np.nan), "4 of 4 numbers in actual are not finite"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(ax, predicted, actual, told):
    with pytest.raises(ValueError, match=told):
        predicted_against_actual(predicted, actual, ax)


def test_each_method_has_a_point_with_its_error(ax):
    lds_of_methods({"DataInf": (0.3, 0.04), "$x$": (-0.1, 0.02)}, ax, ceiling=0.9)
    points, _, (bars,) = ax.containers[0]
    assert points.get_xydata().tolist() == [[0.3, 0], [-0.1, 1]]
    ends = [[x for x, _ in segment] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [(0.26, 0.34), (-0.12, -0.08)])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["DataInf", "$x$"]
    assert 0.9 in [line.get_xdata()[0] for line in ax.lines]
    ax.figure.canvas.draw()


def test_without_a_ceiling_none_is_drawn(ax):
    lds_of_methods({"DataInf": (0.3, 0.04)}, ax)
    assert list(ax.texts) == []


def test_no_scores_and_scores_without_a_number_are_refused(ax):
    with pytest.raises(ValueError, match="scores is empty"):
        lds_of_methods({}, ax)
    with pytest.raises(ValueError, match="1 of 2 numbers in the scores and errors are not finite"):
        lds_of_methods({"a": (np.nan, 0.1)}, ax)
