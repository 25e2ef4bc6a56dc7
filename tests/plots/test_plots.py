import sys
from io import StringIO
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pydvl_datainf import plots
from pydvl_datainf.plots import (
    influence_distribution,
    inspection_curves,
    removal_curves,
    roc_curves,
    score_distribution,
)
from pydvl_datainf.plots.style import literal, signed

MISLABELLED = np.array([False, True, False, True])
SUSPICION = np.array([1.0, 2.0, 3.0, 4.0])
CURVES = pytest.mark.parametrize("draw", [roc_curves, inspection_curves])


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


# ROC and inspection


def test_roc_curve_passes_through_the_points_worked_out_by_hand(ax):
    roc_curves({"loss": SUSPICION}, MISLABELLED, ax)
    # Accusing 4, then 3, then 2, then 1: wrong, clean, wrong, clean.
    points = ax.lines[0].get_xydata().tolist()
    assert points == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert labels(ax) == ["loss: 0.750", "Chance: 0.500"]


@CURVES
def test_curves_differ_in_colour_and_style(draw, ax):
    draw({str(i): SUSPICION * (-1) ** i for i in range(5)}, MISLABELLED, ax)
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines[:5]]
    assert len({colour for colour, _ in looks}) == 5
    assert len({style for _, style in looks}) >= 4  # matplotlib calls dashes of any kind "--"


def test_areas_stand_beside_the_names(ax):
    roc_curves({str(i): SUSPICION * (-1) ** i for i in range(2)}, MISLABELLED, ax)
    assert labels(ax)[:2] == ["0: 0.750", "1: 0.250"]


def test_inspection_finds_the_shares_worked_out_by_hand(ax):
    mislabelled = np.array([True, False, False, False, True])
    inspection_curves({"loss": np.array([0.1, 0.5, 0.4, 0.3, 0.9])}, mislabelled, ax)
    curve, perfect, chance = (line.get_xydata() for line in ax.lines)
    # Inspecting 0.9, 0.5, 0.4, 0.3, 0.1: wrong, clean, clean, clean, wrong.
    expected = [[0, 0], [0.2, 0.5], [0.4, 0.5], [0.6, 0.5], [0.8, 0.5], [1, 1]]
    np.testing.assert_allclose(curve, expected, atol=1e-15)
    np.testing.assert_allclose(perfect, [[0, 0], [0.4, 1], [1, 1]])
    np.testing.assert_allclose(chance, [[0, 0], [1, 1]])
    assert labels(ax) == ["loss", "Perfect", "Chance"]


def test_equal_suspicions_are_inspected_together(ax):
    """Premise: the order of the samples could turn a constant suspicion into perfection."""
    inspection_curves({"constant": np.ones(4)}, np.array([True, True, False, False]), ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])


def test_inspection_is_the_mean_over_the_orders_of_equal_suspicions(ax):
    suspicion, wrong = np.array([2, 1, 1, 1, 0]), np.array([False, True, False, True, True])
    inspection_curves({"ties": suspicion}, wrong, ax)
    rng, found = np.random.default_rng(0), np.zeros(6)
    repetitions = 20_000
    for _ in range(repetitions):
        order = np.lexsort([rng.random(5), -suspicion])
        found[1:] += np.cumsum(wrong[order]) / 3 / repetitions
    curve = ax.lines[0].get_xydata()
    np.testing.assert_allclose(np.interp(np.arange(6) / 5, *curve.T), found, atol=0.01)


@CURVES
@pytest.mark.parametrize(
    ("suspicions", "mislabelled", "message"),
    [
        ({}, MISLABELLED, "suspicions is empty"),
        ({"loss": SUSPICION[:3]}, MISLABELLED, r"must have shape \(3,\)"),
        ({"loss": SUSPICION[None]}, MISLABELLED, r"array of 1 axes, not empty; got \(1, 4\)"),
        ({"loss": np.array([])}, np.array([], dtype=bool), "not empty"),
        ({"loss": np.array([1, np.nan, 3, 4])}, MISLABELLED, "1 of 4 numbers in .* 'loss'"),
        ({"loss": SUSPICION}, MISLABELLED.astype(int), "array of bool, got int64"),
        ({"loss": SUSPICION}, np.ones(4, dtype=bool), "4 of 4 are mislabelled"),
        ({"loss": SUSPICION[:1]}, np.zeros(1, dtype=bool), "0 of 1 are mislabelled"),
    ],
)
def test_what_has_no_curve_is_refused(draw, suspicions, mislabelled, message, ax):
    with pytest.raises(ValueError, match=message):
        draw(suspicions, mislabelled, ax)


# Distributions


def test_distribution_has_the_densities_worked_out_by_hand(ax):
    score_distribution(np.array([0.0, 10.0, 10.0, 4.0]), MISLABELLED, ax, name="loss", bins=2)
    # The middle 98% of the scores: 1% and 99% lie between the two outermost on either side.
    clean, _, flipped, _ = [patch.get_data() for patch in ax.patches]
    np.testing.assert_allclose(clean.edges, [0.12, 5.06, 10.0], atol=1e-12)
    np.testing.assert_allclose(clean.values, np.array([1, 1]) / 2 / 4.94)
    np.testing.assert_allclose(flipped.values, np.array([1, 1]) / 2 / 4.94)
    assert labels(ax) == ["clean (2)", "flipped (2)"]
    assert ax.get_xlabel() == "loss"


def test_distribution_counts_outliers_in_the_outermost_bins(ax):
    scores = np.append(np.linspace(0, 1, 998), [1e6, -1e6])
    mislabelled = np.arange(1000) >= 998
    score_distribution(scores, mislabelled, ax, bins=10)
    flipped = ax.patches[2].get_data()
    assert flipped.edges[-1] < 1
    shares = flipped.values * np.diff(flipped.edges)
    np.testing.assert_allclose(shares, [0.5] + 8 * [0] + [0.5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_score_is_in_some_bin(dtype, ax):
    scores = (np.arange(40) / 7).astype(dtype)
    score_distribution(scores, np.arange(40) % 2 == 0, ax)
    for patch in ax.patches:
        data = patch.get_data()
        assert np.sum(data.values * np.diff(data.edges)) == pytest.approx(1)


def test_distribution_without_mislabelled_samples_has_an_empty_histogram(ax):
    score_distribution(SUSPICION, np.zeros(4, dtype=bool), ax)
    assert not ax.patches[2].get_data().values.any()
    assert labels(ax) == ["clean (4)", "flipped (0)"]


def test_distribution_of_equal_scores_is_drawn(ax):
    score_distribution(np.full(4, 2.0), MISLABELLED, ax, bins=3)
    data = ax.patches[0].get_data()
    np.testing.assert_allclose(data.values * np.diff(data.edges), [0, 1, 0])


def spans(collection):
    return np.array([path[:, 0] for path in collection.get_segments()])


def test_rows_of_labels_show_the_quantiles_worked_out_by_hand(ax):
    # 0, 1, ..., 20: the quantile q is 20 q; those of "low" lie 100 lower.
    values = np.concatenate([np.arange(21.0) - 100, np.arange(21.0)])
    influence_distribution(values, np.repeat(["low", "high"], 21), ax, name="Value")
    assert rows(ax) == ["high (21)", "low (21)"]  # the larger median on top
    ends, medians = ax.collections
    np.testing.assert_allclose(spans(ends), [[1, 19], [-99, -81]])
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    np.testing.assert_allclose(bars, [[5, 15], [-95, -85]])
    np.testing.assert_allclose(medians.get_offsets(), [[10, 0], [-90, 1]])
    assert not np.array_equal(*medians.get_facecolors())
    assert ax.get_xlabel().startswith("Value ")
    assert ax.get_ylim() == (1.5, -0.5)


def test_one_sample_and_labels_of_numbers_are_drawn(ax):
    influence_distribution(np.array([-3.0]), np.array([7]), ax)
    assert rows(ax) == ["7 (1)"]
    assert ax.collections[1].get_offsets().tolist() == [[-3, 0]]


def test_rows_with_equal_medians_are_in_the_order_of_their_labels(ax):
    influence_distribution(np.zeros(4), np.array(["c", "a", "b", "a"]), ax)
    assert rows(ax) == ["a (2)", "b (1)", "c (1)"]


def test_each_row_tells_the_number_of_its_samples(ax):
    influence_distribution(np.array([1, 2, 2, 3]), np.array(["a", "b", "b", "c"]), ax)
    assert rows(ax) == ["c (1)", "b (2)", "a (1)"]
    influence_distribution(np.array([1, 1, 1, 3]), np.array(["a", "a", "a", "c"]), ax)
    assert rows(ax) == ["c (1)", "a (3)"]  # sorted by label the counts would be 3 and 1


def test_of_very_many_rows_some_are_named_and_names_keep_their_rows(ax):
    influence_distribution(-np.arange(300.0), np.arange(300), ax)
    ticks = ax.get_yticks().tolist()
    assert 10 < len(ticks) < 100
    assert rows(ax) == [f"{tick} (1)" for tick in ticks]


@pytest.mark.parametrize("draw", [score_distribution, influence_distribution])
def test_distributions_refuse_what_they_cannot_draw(draw, ax):
    with pytest.raises(ValueError, match=r"1 of 4 numbers in (scores|influences)"):
        draw(np.array([1, 2, np.inf, 3]), MISLABELLED, ax)
    with pytest.raises(ValueError, match=r"must have shape \(4,\).*got \(3,\)"):
        draw(SUSPICION, MISLABELLED[:3], ax)


# Removal


def test_removal_curves_are_means_with_bands_of_one_standard_deviation(ax):
    scores = {"a": np.array([[1.0, 0.6], [0.8, 0.2]]), "b": np.array([[0.5, 0.5]])}
    removal_curves(scores, ax, shares=np.array([0.0, 0.5]), name="Accuracy")
    mean, single = (line.get_xydata() for line in ax.lines)
    np.testing.assert_allclose(mean, [[0, 0.9], [0.5, 0.4]])
    np.testing.assert_allclose(single, [[0, 0.5], [0.5, 0.5]])
    (band,) = ax.collections  # none for one repetition
    # Of two numbers the standard deviation is half their distance times the root of two.
    low, high = np.array([[0.9, 0.4]]) + np.array([[-1], [1]]) * np.array([0.1, 0.2]) * 2**0.5
    corners = np.concatenate([np.stack([[0, 0.5], y], axis=1) for y in (low, high)])
    for corner in corners:
        assert np.isclose(band.get_paths()[0].vertices, corner).all(axis=1).any()
    assert labels(ax) == ["a", "b"]
    assert ax.get_ylabel() == "Accuracy"


def test_removal_curves_read_the_frames_of_pydvl(ax):
    # As run_removal_experiment returns them, with repetitions in any order.
    frame = pd.DataFrame(
        [
            {0.2: 0.7, 0.0: 0.9, "method_name": "B"},
            {0.2: 0.1, 0.0: 0.3, "method_name": "A"},
            {0.2: 0.5, 0.0: 0.7, "method_name": "B"},
        ]
    )
    removal_curves(frame, ax)
    assert labels(ax) == ["A", "B"]
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0.3], [0.2, 0.1]])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0, 0.8], [0.2, 0.6]])
    assert len(ax.collections) == 1


@pytest.mark.parametrize(
    ("scores", "shares", "message"),
    [
        ({"a": np.ones((2, 3))}, None, "pass shares along with arrays"),
        (pd.DataFrame({0.0: [1.0], "method_name": ["a"]}), np.zeros(1), "and only with them"),
        (pd.DataFrame({0.0: [1.0], 0.1: [1.0]}), None, r"has only \[0.0, 0.1\]"),
        ({"a": np.ones((2, 3))}, np.zeros(2), r"each of 2 shares, but have shape \(2, 3\)"),
        ({"a": np.ones(3)}, np.zeros(3), "array of 2 axes"),
        ({"a": np.array([[1.0, np.nan]])}, np.zeros(2), "1 of 2 numbers in the scores 'a'"),
    ],
)
def test_removal_curves_refuse_what_they_cannot_draw(scores, shares, message, ax):
    with pytest.raises(ValueError, match=message):
        removal_curves(scores, ax, shares=shares)


# What all plots share

SCORES = np.array([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]])
BY_BLOCK = np.stack([SCORES, SCORES / 2], axis=1)
AXES = {
    "roc_curves": lambda ax: plots.roc_curves({"loss": SUSPICION}, MISLABELLED, ax),
    "inspection_curves": lambda ax: plots.inspection_curves({"loss": SUSPICION}, MISLABELLED, ax),
    "score_distribution": lambda ax: plots.score_distribution(SUSPICION, MISLABELLED, ax),
    "influence_distribution": lambda ax: plots.influence_distribution(SUSPICION, MISLABELLED, ax),
    "influential_texts": lambda ax: plots.influential_texts("q", list("abc"), SCORES[0], ax),
    "perturbation_image": lambda ax: plots.perturbation_image(SCORES, SCORES, ax),
    "block_shares": lambda ax: plots.block_shares(BY_BLOCK, ["a", "b"], ax),
    "damping_by_block": lambda ax: plots.damping_by_block(["a", "b"], np.ones(2), ax),
    "error_by_block": lambda ax: plots.error_by_block(["a", "b"], np.ones(2), ax),
    "score_heatmap": lambda ax: plots.score_heatmap(SCORES, ax),
    "removal_curves": lambda ax: plots.removal_curves({"a": SCORES}, ax, shares=np.arange(3) / 10),
}


def images(figure):
    return plots.influential_images(SCORES, [SCORES] * 3, SCORES[0], figure)


def test_every_plot_of_the_package_is_tested_here():
    functions = {name for name in plots.__all__ if callable(getattr(plots, name))}
    elsewhere = {
        "influential_images",
        "lds_of_methods",
        "predicted_against_actual",
        "token_heatmap",
    }
    assert functions - {"shares_of_sum", *elsewhere} == set(AXES)


@pytest.mark.parametrize("name", AXES)
def test_axes_are_the_given_ones_or_new_ones(name, ax):
    plt.switch_backend("agg")
    assert AXES[name](ax) is ax
    assert plt.get_fignums() == []
    new = AXES[name](None)
    assert new is not ax
    assert plt.get_fignums() == [new.figure.number]
    plt.close(new.figure)


@pytest.mark.parametrize("name", AXES)
def test_given_axes_need_no_pyplot(name, ax, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises
    assert AXES[name](ax) is ax
    with pytest.raises(ImportError):
        AXES[name](None)


def test_a_figure_is_the_given_one_or_a_new_one():
    plt.switch_backend("agg")
    given = Figure()
    assert images(given) == given.axes
    (part, _) = Figure().subfigures(1, 2)
    assert images(part) == part.axes
    assert plt.get_fignums() == []
    new = images(None)[0].figure
    assert plt.get_fignums() == [new.number]
    plt.close(new)


@pytest.mark.parametrize("name", AXES)
def test_every_plot_renders_at_the_size_of_a_notebook(name):
    """Premise: warnings are errors, so a layout that finds no room fails."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    AXES[name](figure.subplots())
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", AXES)
def test_texts_and_lines_of_axes_follow_the_style_of_the_page(name):
    with plt.style.context("dark_background"):
        ax = AXES[name](Figure().subplots())
    colours = {label.get_color() for label in (*ax.get_xticklabels(), *ax.get_yticklabels())}
    assert colours <= {"white"}
    assert ax.xaxis.label.get_color() == "white"


def test_names_are_shown_as_they_are(ax):
    names = ["$x^2$", "_hidden", "tab\there"]
    roc_curves(dict.fromkeys(names, SUSPICION), MISLABELLED, ax)
    texts = ax.get_legend().get_texts()
    assert [text.get_text() for text in texts[:3]] == [
        "$x^2$: 0.750",
        "_hidden: 0.750",
        "tab here: 0.750",
    ]
    assert not any(text.get_parse_math() for text in texts)
    influence_distribution(SUSPICION, np.array(["$x$", "$y$", "$x$", "$"]), ax, name="$z$")
    assert rows(ax) == ["$ (1)", "$x$ (2)", "$y$ (1)"]
    assert not any(label.get_parse_math() for label in (*ax.get_yticklabels(), ax.xaxis.label))


def test_control_characters_are_left_out():
    assert literal("a\x00b\x1b[1m\n c\u0085") == "ab[1m c"


def test_names_that_xml_cannot_hold_are_drawn_as_valid_svg():
    names = ["a\ufffe", "b\uffff", "c\ud800", "<d>&--"]
    stream = StringIO()
    figure = Figure()
    influence_distribution(SUSPICION, np.array(names, dtype=object), figure.subplots())
    figure.savefig(stream, format="svg")
    texts = [node.text for node in ElementTree.fromstring(stream.getvalue()).iter()]
    assert len(texts) > 20
    assert "\ufffe" not in stream.getvalue()


def test_numbers_have_a_sign_and_three_digits():
    assert [signed(x) for x in (0.12345, -1234.5, -1e-7)] == ["+0.123", "−1.23e+03", "−1e−07"]
