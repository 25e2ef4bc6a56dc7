"""Which tokens of an answer depend on which training samples."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from pydvl_datainf.evaluation import Indices, largest
from pydvl_datainf.plots.arrays import Floats, checked_floats, colour_limit
from pydvl_datainf.plots.style import DIVERGING, add_colour_bar, new_axes, wrapped


def token_heatmap(
    scores: Floats,
    tokens: Sequence[str],
    train_ids: Sequence[object],
    ax: Axes | None = None,
    *,
    k: int = 10,
) -> Axes:
    """Draws the influence of training samples on each token of an answer.

    The samples are those with the largest absolute influence on the answer, the sum over its
    tokens, from the most helpful on.

    Args:
        scores: influences on the tokens, (T, n), as `ask(..., by_token=True)` gives them for one
            answer.
        tokens: in their order, (T,).
        train_ids: names of the training samples, (n,).
        ax: where to draw; new axes by default.
        k: training samples, at most.

    Returns:
        The axes, with a row for each sample, a column for each token, and a colour bar.

    Raises:
        ValueError: if the shapes differ, or a score is not finite.
    """
    values = checked_floats("scores", scores, 2)
    if values.shape != (len(tokens), len(train_ids)):
        raise ValueError(
            f"scores need a row for each of the {len(tokens):,} tokens and a column for each of "
            f"the {len(train_ids):,} training samples, but have shape {values.shape}"
        )
    total = values.sum(0)
    chosen = largest(np.abs(total), k)
    rows: Indices = chosen[largest(total[chosen], k)]
    strongest = colour_limit(values[:, rows], None)
    ax = new_axes(ax)
    drawn = ax.imshow(values.T[rows], DIVERGING, vmin=-strongest, vmax=strongest, aspect="auto")
    names = [wrapped(str(train_ids[i]), 20, 1) for i in rows]
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    shown = [wrapped(token, 20, 1) for token in tokens]
    ax.set_xticks(range(len(tokens)), shown, rotation=90, parse_math=False)
    ax.set(xlabel="Tokens of the answer", ylabel="Training samples")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    add_colour_bar(ax, drawn, strongest, "Influence")
    return ax
