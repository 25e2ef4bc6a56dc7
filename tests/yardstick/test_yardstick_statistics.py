"""Scores against retraining: SciPy, NumPy and loops in place of the package's matrix products."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from pydvl_datainf.yardstick.statistics import (
    TEST_SPREAD,
    ceiling,
    difference,
    expected_error,
    lines,
    mean_of_defined,
    measure,
    median_of_defined,
    rank_correlations,
)
from pydvl_datainf.yardstick.subsets import Scores, half_subsets

M, SEEDS, TESTS = 13, 3, 4


def drawn(seed=0, rounded=False):
    """Predictions (m, M) and losses (M, S, m) that go together a little."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(TESTS, M))
    losses = 2 + 0.3 * predicted.T[:, None] + rng.normal(size=(M, SEEDS, TESTS))
    return (predicted.round(0), losses.round(0)) if rounded else (predicted, losses)


def once(columns):
    return np.ones((1, columns), dtype=int)


def slope_and_intercept(x, y):
    return np.polyfit(x, y, 1)


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
def test_correlations_are_those_of_scipy(rounded):
    predicted, losses = drawn(rounded=rounded)
    expected = [spearmanr(p, y)[0] for p, y in zip(predicted, losses[:, 0].T, strict=True)]
    found = rank_correlations(predicted, losses[:, 0].T, once(M))
    np.testing.assert_allclose(found, [expected], rtol=0, atol=1e-12)


def test_a_correlation_worked_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 · 4 / (4 · 15) = 0.6.
    found = rank_correlations(np.array([[1.0, 2, 3, 9]]), np.array([[0.2, 0.1, 5, 4]]), once(4))
    np.testing.assert_allclose(found, [[0.6]], rtol=1e-12)


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
def test_a_draw_counts_as_the_columns_that_it_repeats(rounded):
    predicted, losses = drawn(1, rounded)
    actual = losses.mean(axis=1).T
    counts = np.random.default_rng(2).multinomial(M, np.full(M, 1 / M), size=5)
    correlations, (slopes, intercepts) = (
        rank_correlations(predicted, actual, counts),
        lines(predicted, actual, counts),
    )
    for b, count in enumerate(counts):
        x, y = np.repeat(predicted, count, axis=1), np.repeat(actual, count, axis=1)
        for t in range(TESTS):
            np.testing.assert_allclose(correlations[b, t], spearmanr(x[t], y[t])[0], atol=1e-12)
            np.testing.assert_allclose(
                (slopes[b, t], intercepts[b, t]), slope_and_intercept(x[t], y[t]), atol=1e-9
            )


def test_constant_scores_count_as_nothing_and_constant_losses_are_left_out():
    predicted, losses = drawn()
    predicted[0], losses[:, :, 1] = 0, 3
    found = measure(predicted, losses)
    rest = [spearmanr(predicted[t], losses[:, :, t].mean(1))[0] for t in (2, 3)]
    np.testing.assert_allclose(found.per_test[[0, 2, 3]], [0, *rest], atol=1e-12)
    assert np.isnan(found.per_test[1])
    assert np.isnan(found.slopes[0])
    np.testing.assert_allclose(found.lds, sum(rest) / 3)
    np.testing.assert_allclose(found.slope, np.median(found.slopes[1:]))
    assert (found.constant_scores, found.constant_losses) == (1, 1)
    assert 0 < found.error < 1


def test_without_any_change_nothing_is_defined():
    found = measure(np.zeros((2, 12)), np.ones((12, 2, 2)))
    numbers = [found.lds, found.error, found.ceiling, found.slope, found.slope_error]
    assert np.isnan(numbers).all()


def test_the_bootstrap_is_that_of_a_loop_over_subsets_and_test_samples():
    predicted, losses = drawn(3)
    actual, draws = losses.mean(axis=1).T, 40
    found = measure(predicted, losses, draws)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(M, np.full(M, 1 / M), size=draws)
    tests = rng.integers(TESTS, size=(draws, TESTS))
    scores, slopes = [], []
    for count, chosen in zip(counts, tests, strict=True):
        columns = np.repeat(np.arange(M), count)
        pairs = [(predicted[t, columns], actual[t, columns]) for t in chosen]
        scores.append(np.mean([spearmanr(x, y)[0] for x, y in pairs]))
        slopes.append(np.median([slope_and_intercept(x, y)[0] for x, y in pairs]))
    np.testing.assert_allclose(found.draws, scores, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.error, np.std(scores, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(found.slope_error, np.std(slopes, ddof=1), rtol=1e-9)
    # Over test samples alone it is another number.
    alone = np.std([found.per_test[chosen].mean() for chosen in tests], ddof=1)
    assert abs(alone / found.error - 1) > 0.1


def test_differences_are_paired():
    predicted, losses = drawn(4)
    base = measure(predicted, losses)
    near = measure(predicted + 0.05 * drawn(5)[0], losses)
    value, error = difference(near, base)
    assert value == near.lds - base.lds
    assert error == np.std(near.draws - base.draws, ddof=1)
    assert 0 < error < 0.5 * np.hypot(near.error, base.error)
    assert difference(base, base) == (0, 0)


def test_the_ceiling_is_the_root_of_the_reliability_of_the_mean_over_seeds():
    _, losses = drawn(6)
    losses += 2 * np.random.default_rng(7).normal(size=(M, 1, TESTS))
    pairs = [(0, 1), (0, 2), (1, 2)]
    r = np.mean(
        [spearmanr(losses[:, a, t], losses[:, b, t])[0] for t in range(TESTS) for a, b in pairs]
    )
    np.testing.assert_allclose(ceiling(losses), (3 * r / (1 + 2 * r)) ** 0.5, rtol=1e-12)


def test_the_ceiling_where_seeds_agree_do_not_agree_or_are_alone():
    _, losses = drawn(6)
    first = losses[:, :1]
    assert ceiling(np.concatenate([first, first], axis=1)) == pytest.approx(1)
    assert ceiling(np.concatenate([first, -first], axis=1)) == 0
    assert np.isnan(ceiling(first))
    constant = np.concatenate([first, np.where(np.arange(TESTS) == 0, 1, first)], axis=1)
    assert ceiling(constant) == pytest.approx(1)


def test_means_and_medians_of_what_is_defined():
    values = np.array([[3, np.nan, 1, 2], [np.nan, 5, 1, np.nan], [4, 3, 1, 2.0]])
    np.testing.assert_allclose(mean_of_defined(values), np.nanmean(values, axis=1))
    np.testing.assert_allclose(median_of_defined(values), np.nanmedian(values, axis=1))
    nothing = np.full((2, 3), np.nan)
    assert np.isnan(mean_of_defined(nothing)).all()
    assert np.isnan(median_of_defined(nothing)).all()


def test_the_expected_error_of_test_samples_alike_and_unlike():
    row = np.random.default_rng(0).normal(size=(1, 100))
    alike = np.concatenate([row, -row, 2 * row, row])
    np.testing.assert_allclose(expected_error(alike, 26), (1 / 25 + TEST_SPREAD**2 / 4) ** 0.5)
    unlike = np.linalg.qr(np.random.default_rng(1).normal(size=(100, 5)))[0]
    unlike = np.linalg.qr(unlike - unlike.mean(0))[0].T
    found = expected_error(unlike, 26)
    np.testing.assert_allclose(found, (1 / (25 * 5) + TEST_SPREAD**2 / 5) ** 0.5)
    assert expected_error(np.zeros((3, 100)), 26) == 0


def test_the_expected_error_is_about_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(30, 6)) @ rng.normal(size=(6, 60))
    losses = predicted.T[:, None] + 4 * rng.normal(size=(60, 2, 30))
    assert 0.5 < expected_error(predicted, 60) / measure(predicted, losses).error < 2


def test_the_bootstrap_is_on_the_safe_side_of_the_true_error():
    """Banks drawn anew, test samples included: how far their scores spread is the true error."""
    rng, n = np.random.default_rng(0), 60
    samples = rng.normal(size=(n, 6))
    found = []
    for seed in range(40):
        scores = rng.normal(size=(20, 6)) @ samples.T
        members = half_subsets(n, 40, seed)
        predicted = Scores.of(scores).predicted_changes(members)
        noise = rng.normal(size=(40, 2, 20)) * predicted.std()
        found.append(measure(predicted, predicted.T[:, None] + noise, draws=200))
    true = np.std([one.lds for one in found], ddof=1)
    assert 1 < np.mean([one.error for one in found]) / true < 2.2
