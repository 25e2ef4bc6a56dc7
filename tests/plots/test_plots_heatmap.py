from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from pydvl_datainf.plots import score_heatmap

SCORES = np.random.default_rng(1).normal(size=(4, 6))


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def names(labels):
    return [label.get_text() for label in labels]


def test_without_clustering_and_labels_the_scores_are_drawn_as_they_are(ax):
    score_heatmap(SCORES, ax, cluster=False)
    np.testing.assert_array_equal(drawn(ax), SCORES)
    assert ax.get_xlabel() == "Training samples (6)"
    assert ax.get_ylabel() == "Test samples (4)"


def test_samples_of_a_label_stand_together_in_their_order(ax):
    test, train = np.array([1, 0, 1, 0]), np.array(["b", "a", "b", "c", "a", "b"])
    score_heatmap(SCORES, ax, test_labels=test, train_labels=train, cluster=False)
    np.testing.assert_array_equal(drawn(ax), SCORES[[1, 3, 0, 2]][:, [1, 4, 0, 2, 5, 3]])
    assert names(ax.get_yticklabels()) == ["0", "1"]
    assert ax.get_yticks().tolist() == [0.5, 2.5]
    assert names(ax.get_xticklabels()) == ["a", "b", "c"]
    assert ax.get_xticks().tolist() == [0.5, 3, 5]
    lines = [(*line.get_xdata(), *line.get_ydata()) for line in ax.lines]
    assert lines == [(0, 1, 1.5, 1.5), (1.5, 1.5, 0, 1), (4.5, 4.5, 0, 1)]


def test_clustering_gathers_samples_of_one_pattern_whatever_their_scale(ax):
    patterns = np.eye(3).repeat(2, axis=1)  # training samples 0-1, 2-3, 4-5 go together
    which = np.array([0, 1, 2, 0, 1, 2, 0])
    scales = np.array([1, 100, 0.01, 50, 0.2, 3, 7])
    shuffled = np.array([0, 2, 4, 1, 3, 5])
    scores = (patterns[which] * scales[:, None])[:, shuffled]
    score_heatmap(scores, ax)
    pattern = drawn(ax).argmax(axis=1) // 2
    assert np.count_nonzero(np.diff(pattern)) == 2  # each pattern is one run of rows
    filled = drawn(ax) != 0
    assert np.count_nonzero(np.diff(filled, axis=1)) < np.count_nonzero(
        np.diff(scores != 0, axis=1)
    )
    assert np.sort(drawn(ax), axis=None).tolist() == np.sort(scores, axis=None).tolist()


def test_clustering_keeps_labels_together(ax):
    train = np.array([1, 0, 1, 0, 1, 0])
    score_heatmap(SCORES, ax, train_labels=train)
    columns = [np.flatnonzero((SCORES.sum(axis=0) == total).T) for total in SCORES.sum(axis=0)]
    assert [len(column) for column in columns] == [1] * 6  # premise: sums tell columns apart
    sums = drawn(ax).sum(axis=0)
    found = [int(np.abs(SCORES.sum(axis=0) - total).argmin()) for total in sums]
    assert train[found].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_few_and_equal_scores_are_drawn(shape, value, ax):
    """Premise: rows of zeros have no direction."""
    score_heatmap(np.full(shape, value), ax)
    np.testing.assert_array_equal(drawn(ax), np.full(shape, value))


def test_colours_are_centred_at_zero_and_outliers_do_not_bleach_them(ax):
    scores = np.linspace(-1, 0.5, 1000).reshape(10, 100)
    scores[0, 0] = 1e6
    score_heatmap(scores, ax, cluster=False)
    limit = ax.images[0].norm.vmax
    assert limit == np.percentile(np.abs(scores), 99)
    assert limit < 1.1
    assert ax.images[0].norm.vmin == -limit
    (bar,) = set(ax.figure.axes) - {ax}
    assert bar.get_ylabel() == "Influence"
    assert ax.images[0].colorbar.extend == "both"


def test_the_limit_can_be_set(ax):
    score_heatmap(SCORES, ax, limit=10)
    assert ax.images[0].get_clim() == (-10, 10)
    assert ax.images[0].colorbar.extend == "neither"


def test_zero_scores_but_for_one_are_not_divided_by_zero(ax):
    scores = np.zeros((20, 20))
    scores[3, 3] = -5
    score_heatmap(scores, ax)
    assert ax.images[0].get_clim() == (-5, 5)


def test_labels_of_the_same_name_stay_apart_and_are_shown_as_they_are(ax):
    train = np.array(["$a$", "$a$ ", "$a$", "_b", "_b", "_b"])
    score_heatmap(SCORES, ax, train_labels=train, cluster=False)
    np.testing.assert_array_equal(drawn(ax), SCORES[:, [0, 2, 1, 3, 4, 5]])
    assert names(ax.get_xticklabels()) == ["$a$", "$a$", "_b"]
    assert not any(label.get_parse_math() for label in ax.get_xticklabels())


def test_names_of_many_labels_do_not_touch():
    labels = np.array([f"class {i:02}" for i in range(60)])
    figure = Figure(figsize=(6, 4), layout="constrained")
    scores = np.random.default_rng(0).normal(size=(60, 60))
    ax = score_heatmap(scores, figure.subplots(), test_labels=labels, train_labels=labels)
    figure.draw_without_rendering()
    across = [label.get_window_extent() for label in ax.get_xticklabels()]
    down = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(across) > 5
    assert len(down) > 5
    assert all(right.x0 > left.x1 for left, right in pairwise(across))
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(down))
    assert not ax.lines  # 59 lines would hide the scores


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (SCORES[0], {}, "array of 2 axes"),
        (np.where(SCORES > 1, np.nan, SCORES), {}, "numbers in scores are not finite"),
        (SCORES, {"test_labels": np.arange(6)}, r"test_labels must have shape \(4,\)"),
        (SCORES, {"train_labels": np.arange(4)}, r"train_labels must have shape \(6,\)"),
        (SCORES, {"limit": 0.0}, "limit must be positive, got 0"),
        (SCORES, {"limit": np.nan}, "limit must be positive, got nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused(scores, options, message, ax):
    with pytest.raises(ValueError, match=message):
        score_heatmap(scores, ax, **options)
