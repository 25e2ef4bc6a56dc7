"""What scores predict, against what retraining did."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from pydvl_datainf.plots.arrays import Floats, checked_floats
from pydvl_datainf.plots.style import COLOURS, GREY, axes_with_rows, hide_spines, new_axes


def predicted_against_actual(predicted: Floats, actual: Floats, ax: Axes | None = None) -> Axes:
    """Draws the loss of a test sample after retraining against the change that was predicted.

    Args:
        predicted: change for each subset, (M,), such as `Validation.predicted[t]`.
        actual: loss after training on it, (M,), such as `Validation.actual[t]`.
        ax: where to draw; new axes by default.

    Returns:
        The axes, with a point for each subset; a fitted line, whose slope is told; and a grey line
        of slope 1 through the means, on which the points would lie were all sizes right.

    Raises:
        ValueError: if the lengths differ, a number is not finite, or all predictions are equal.
    """
    x, y = checked_floats("predicted", predicted), checked_floats("actual", actual)
    if x.size != y.size:
        raise ValueError(f"there are {x.size} predicted changes and {y.size} losses")
    if np.ptp(x) == 0:
        raise ValueError("all predicted changes are equal; choose another test sample")
    slope = np.cov(x, y)[0, 1] / x.var(ddof=1)
    ax = new_axes(ax)
    ax.scatter(x, y, color=COLOURS[0], s=16, linewidths=0, alpha=0.7)
    ends = np.array([x.min(), x.max()])
    for steepness, colour, name in ((1, GREY, "1"), (slope, COLOURS[1], f"{slope:.2f}")):
        ax.plot(ends, y.mean() + steepness * (ends - x.mean()), color=colour, label=name)
    ax.set(xlabel="Predicted change of the loss", ylabel="Loss after retraining")
    ax.legend(frameon=False, title="Slope")
    hide_spines(ax)
    return ax


def lds_of_methods(
    scores: Mapping[str, tuple[float, float]],
    ax: Axes | None = None,
    *,
    ceiling: float | None = None,
) -> Axes:
    """Draws the linear datamodelling scores of methods, with their errors.

    Args:
        scores: for each name the score and its standard error.
        ax: where to draw; new axes by default.
        ceiling: what a perfect prediction would reach; None = not drawn.

    Returns:
        The axes, with a point and a bar of one standard error to either side for each method, a
        line at 0, and a dotted one at the ceiling.

    Raises:
        ValueError: if there are no scores, or one is not finite.
    """
    if not scores:
        raise ValueError("scores is empty; give at least one method to draw")
    values, errors = checked_floats("the scores and errors", list(scores.values()), 2).T
    ax = axes_with_rows(ax, list(scores))
    ax.errorbar(values, np.arange(len(values)), xerr=errors, fmt="o", color=COLOURS[0], capsize=3)
    ax.axvline(0, color=GREY, linewidth=1)
    if ceiling is not None:
        ax.axvline(ceiling, color=GREY, linestyle=":")
        ax.text(ceiling, -0.5, "ceiling ", ha="right", va="bottom", color=GREY)
    ax.set_xlabel("Linear datamodelling score (± standard error)")
    hide_spines(ax, "left")
    return ax
