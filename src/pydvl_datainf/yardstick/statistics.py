"""What scores are worth for predicting retraining: numbers from predicted changes and losses.

M subsets, S seeds, m test samples, B bootstrap draws. A draw of subsets is told by counts c, how
often each subset was drawn, so that all draws are a few products of matrices.
"""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from rich.table import Table

from pydvl_datainf.evaluation import Floats, Indices
from pydvl_datainf.yardstick.table import validation_table

DRAWS = 1000
"""Bootstrap draws; the standard deviation of so many is itself known to about 2%."""

TEST_SPREAD = 0.2
"""Standard deviation, between test samples, of the correlation that retraining without end would
show; what simulated regressions had."""


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """What the scores of one method are worth for predicting what retraining would do.

    Errors are standard errors over subsets and test samples together.

    Attributes:
        lds: linear datamodelling score, the mean of `per_test`, between -1 and 1; 0 = no relation.
        error: of it.
        ceiling: what a perfect prediction would reach given the noise of retraining; NaN where
            there was one seed.
        slope: median over test samples of (actual change / predicted change); 1 = the right size,
            below 1 = predictions are too large. NaN where nothing was predicted.
        slope_error: of it.
        per_test: Spearman correlation for each test sample, (m,); NaN where its loss was the same
            after all retrainings, 0 where its scores are all equal.
        slopes: of each test sample, (m,).
        intercepts: its loss where no change is predicted, (m,).
        predicted: changes of loss, (m, M).
        actual: losses after retraining, means over seeds, (m, M).
        seeds: retrainings of each subset.
        draws: the score in each bootstrap draw, (B,); methods share their draws.
    """

    lds: float
    error: float
    ceiling: float
    slope: float
    slope_error: float
    per_test: Floats = field(repr=False)
    slopes: Floats = field(repr=False)
    intercepts: Floats = field(repr=False)
    predicted: Floats = field(repr=False)
    actual: Floats = field(repr=False)
    seeds: int
    draws: Floats = field(repr=False)

    def __rich__(self) -> Table:
        return validation_table({"given": self}, "given", {})

    @property
    def subsets(self) -> int:
        """How many subsets were retrained on."""
        return self.actual.shape[1]

    @property
    def has_right_size(self) -> bool:
        """Whether predictions are changes of loss, within a factor of two and two errors."""
        return 0.5 <= self.slope <= 2 and 2 * self.slope_error <= self.slope

    @property
    def constant_losses(self) -> int:
        """Test samples that are left out, since no retraining changed their loss."""
        return int(np.isnan(self.per_test).sum())

    @property
    def constant_scores(self) -> int:
        """Test samples that count as 0, since all training samples have the same score."""
        return int((np.ptp(self.predicted, axis=1) == 0).sum())


def measure(predicted: Floats, losses: Floats, draws: int = DRAWS) -> Validation:
    """Compares predicted changes of loss with losses after retraining.

    Args:
        predicted: changes, (m, M).
        losses: after retraining, finite, (M, S, m).
        draws: of the bootstrap over subsets and test samples together.

    Returns:
        The linear datamodelling score (Park et al., "TRAK", 2023, section 2), its ceiling and the
        size of changes, with errors.
    """
    actual = losses.mean(axis=1).T
    m, M = actual.shape
    rng = np.random.default_rng(0)  # the same draws for all methods, so that they can be paired
    counts = rng.multinomial(M, np.full(M, 1 / M), size=draws)
    tests = rng.integers(m, size=(draws, m))
    each = np.ones((1, M), dtype=np.intp)
    per_test = rank_correlations(predicted, actual, each)[0]
    drawn = rank_correlations(predicted, actual, counts)
    scores = mean_of_defined(np.take_along_axis(drawn, tests, axis=1))
    (slopes,), (intercepts,) = lines(predicted, actual, each)
    slopes_drawn, _ = lines(predicted, actual, counts)
    medians = median_of_defined(np.take_along_axis(slopes_drawn, tests, axis=1))
    return Validation(
        lds=float(mean_of_defined(per_test)),
        error=_spread(scores),
        ceiling=ceiling(losses),
        slope=float(median_of_defined(slopes)),
        slope_error=_spread(medians),
        per_test=per_test,
        slopes=slopes,
        intercepts=intercepts,
        predicted=predicted,
        actual=actual,
        seeds=losses.shape[1],
        draws=scores,
    )


def difference(one: Validation, other: Validation) -> tuple[float, float]:
    """How much better one method is than another on the same retrainings.

    Args:
        one: of `measure`.
        other: of the same losses.

    Returns:
        Difference of the linear datamodelling scores, and its standard error by the same draws.
    """
    return one.lds - other.lds, _spread(one.draws - other.draws)


def rank_correlations(x: Floats, y: Floats, counts: Indices) -> Floats:
    """Spearman's correlation of the rows of x and y in each draw of their columns.

    With K[i, j] = 1 where v_i < v_j and ½ where they are equal, c K is the rank of each entry
    among those drawn, up to a constant; the mean of it over the draw is M/2, ties or not.

    Args:
        x: (m, M); a row that is constant in a draw predicts nothing, and has correlation 0.
        y: (m, M); for a row that is constant in a draw the correlation is NaN.
        counts: how often each column is drawn, (B, M), M in all.

    Returns:
        Correlations, (B, m).
    """
    found = np.empty((len(counts), len(x)))
    drawn = counts.astype(np.float32)  # halves of whole numbers below 2²³: exact
    for t, rows in enumerate(zip(x, y, strict=True)):
        a, b = (_centred_ranks(row, drawn) for row in rows)
        product, own, other = ((counts * u * v).sum(1) for u, v in ((a, b), (a, a), (b, b)))
        scale = np.sqrt(own * other)
        found[:, t] = np.divide(product, scale, out=np.zeros(len(counts)), where=scale > 0)
        found[other == 0, t] = np.nan
    return found


def _centred_ranks(row: Floats, drawn: Floats) -> Floats:
    below = (row[:, None] < row) + np.float32(0.5) * (row[:, None] == row)
    ranks: Floats = (drawn @ below).astype(np.float64)
    return ranks - len(row) / 2


def ceiling(losses: Floats) -> float:
    """What the score of a perfect prediction would be, given the noise of retraining.

    The correlation r between two seeds, a mean over test samples and pairs of seeds, makes the
    reliability of the mean of S seeds S r / (1 + (S − 1) r) (Spearman-Brown), and its root is the
    correlation of that mean with the loss expected over seeds.

    Args:
        losses: (M, S, m).

    Returns:
        The ceiling, between 0 and 1; NaN for one seed, or where no retraining changed a loss.
    """
    M, S, _ = losses.shape
    if S == 1:
        return float("nan")
    each = np.ones((1, M), dtype=np.intp)
    pairs = combinations(np.moveaxis(losses, 1, 0), 2)
    # A loss that is constant with either of both seeds is left out.
    both = [_defined_both(rank_correlations(a.T, b.T, each), a) for a, b in pairs]
    # Below 0 there is no reliability; a NaN stays.
    r = float(np.maximum(mean_of_defined(np.concatenate(both, axis=None)), 0))
    return float((S * r / (1 + (S - 1) * r)) ** 0.5)


def _defined_both(correlations: Floats, losses: Floats) -> Floats:
    return np.where(np.ptp(losses, axis=0) == 0, np.nan, correlations)


def lines(x: Floats, y: Floats, counts: Indices) -> tuple[Floats, Floats]:
    """Fits y = a + b x by least squares for each row in each draw of the columns.

    Args:
        x: (m, M).
        y: (m, M).
        counts: how often each column is drawn, (B, M), M in all.

    Returns:
        Slopes b, (B, m), NaN where x is constant, and intercepts a, (B, m).
    """
    M = x.shape[1]
    middle_x, middle_y = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    x, y = x - middle_x, y - middle_y  # before squares are taken: losses vary little
    mean_x, mean_y, mean_xx, mean_xy = (counts @ v.T / M for v in (x, y, x * x, x * y))
    spread = mean_xx - mean_x**2
    usable = spread > np.finfo(np.float64).eps * mean_xx
    slopes = np.full(spread.shape, np.nan)
    np.divide(mean_xy - mean_x * mean_y, spread, out=slopes, where=usable)
    steady = np.where(usable, slopes, 0)
    return slopes, mean_y + middle_y.T - steady * (mean_x + middle_x.T)


def expected_error(predicted: Floats, subsets: int) -> float:
    """About what the standard error of the score will be, before anything is retrained.

    Two test samples whose predicted changes correlate by r over subsets have errors that correlate
    by about r² (their losses being as alike as the predictions), each with variance 1/(M − 1).
    The scores of single test samples differ besides, by about σ = 0.2 (`TEST_SPREAD`):

        error² = mean over pairs (t, u) of r[t, u]² / (M − 1) + σ²/m.

    Args:
        predicted: changes for P subsets, more than 2, (m, P).
        subsets: M, at least 2.

    Returns:
        The error; differences between methods of about twice as much can be seen.
    """
    centred = predicted - predicted.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    k, P = int((length > 0).sum()), unit.shape[1]
    if not k:
        return 0.0
    squares = float(np.square(unit.T @ unit).sum())  # of r over pairs, from the smaller side
    others = max(0.0, squares - k - (k * k - squares) / (P - 2))  # unbiased, as the adjusted R²
    return float(((k + others) / k**2 / (subsets - 1) + TEST_SPREAD**2 / k) ** 0.5)


def mean_of_defined(values: Floats) -> Floats:
    """The mean along the last axis without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    count = there.sum(axis=-1)
    total = np.where(there, values, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def median_of_defined(values: Floats) -> Floats:
    """The median along the last axis without NaN; NaN where there is nothing else."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=-1, keepdims=True)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)
    pair = [np.take_along_axis(ordered, where, axis=-1)[..., 0] for where in (low, high)]
    return (pair[0] + pair[1]) / 2


def _spread(draws: Floats) -> float:
    defined = draws[~np.isnan(draws)]
    return float(defined.std(ddof=1)) if defined.size > 1 else float("nan")
