import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from pydvl_datainf.plots import roc_curves, score_distribution

MISLABELLED = np.array([False, True, False, True])
SUSPICION = np.array([1.0, 2.0, 3.0, 4.0])


@pytest.fixture
def ax():
    return Figure().subplots()


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_roc_curve_passes_through_the_points_worked_out_by_hand(ax):
    roc_curves({"loss": SUSPICION}, MISLABELLED, ax)
    # Accusing 4, then 3, then 2, then 1: wrong, clean, wrong, clean.
    points = ax.lines[0].get_xydata().tolist()
    assert points == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert labels(ax) == ["loss: 0.750", "Chance: 0.500"]


def test_roc_curves_differ_in_colour_and_style(ax):
    roc_curves({str(i): SUSPICION * (-1) ** i for i in range(5)}, MISLABELLED, ax)
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.lines[:5]]
    assert len({colour for colour, _ in looks}) == 5
    assert len(set(looks)) == 5
    assert labels(ax)[:2] == ["0: 0.750", "1: 0.250"]


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


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: roc_curves({"loss": SUSPICION}, MISLABELLED, ax),
        lambda ax: score_distribution(SUSPICION, MISLABELLED, ax),
    ],
    ids=["roc_curves", "score_distribution"],
)
def test_axes_are_the_given_ones_or_new_ones(draw, ax):
    assert draw(ax) is ax
    plt.switch_backend("agg")
    new = draw(None)
    assert new is not ax
    plt.close(new.figure)
