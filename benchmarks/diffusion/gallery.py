"""Draws queries in rows, beside the training pictures that drive them."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pictures import Pictures
from scores import Scores
from torch import Tensor

from pydvl_datainf.evaluation import largest

SAME, OTHER = "#009E73", "#D55E00"  # two of Okabe and Ito's colours
SHOWN = {  # title: method, whether the largest or the smallest scores, how many pictures
    "DataInf: most helpful": ("DataInf", 1, 5),
    "DataInf: most harmful": ("DataInf", -1, 4),
    "nearest by pixels": ("Pixel cosine", 1, 4),
}


def draw_gallery(
    file: Path,
    train: Pictures,
    queries: Mapping[str, Pictures],
    scores: Mapping[str, Mapping[str, Scores]],
    names: Mapping[int, str],
    each: int,
) -> None:
    """Draws the first `each` queries of each class of each set."""
    rows = [(name, i) for name, query in queries.items() for i in _first(query.classes, each)]
    counts = [1, *(count for *_, count in SHOWN.values())]
    figure = plt.figure(figsize=(0.62 * sum(counts) + 0.9, 0.64 * len(rows) + 0.75))
    groups = _groups(figure, len(rows), counts)
    for title, axes in zip(("query", *SHOWN), groups, strict=True):
        axes[0][len(axes[0]) // 2].set_title(title, fontsize=9)
    for row, (name, i) in enumerate(rows):
        query = queries[name]
        _show(groups[0][row][0], query.pixels[i])
        groups[0][row][0].set_ylabel(f"{name}:\n{names[int(query.classes[i])]}", fontsize=7)
        for axes, (method, sign, count) in zip(groups[1:], SHOWN.values(), strict=True):
            for ax, k in zip(
                axes[row], largest(sign * scores[name][method][i], count), strict=True
            ):
                _show(ax, train.pixels[k], train.classes[k] == query.classes[i])
    figure.text(
        0.5, 0.005, "green: of the query's class; red, dashed: of another", fontsize=8, ha="center"
    )
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _first(classes: Tensor, each: int) -> list[int]:
    return [int(i) for c in classes.unique() for i in (classes == c).nonzero()[:each, 0]]


def _groups(figure: Figure, rows: int, counts: list[int]) -> list[list[list[Axes]]]:
    """For each group of columns its rows of axes."""
    outer = figure.add_gridspec(
        1,
        len(counts),
        width_ratios=counts,
        wspace=0.06,
        left=0.09,
        right=0.99,
        top=0.93,
        bottom=0.04,
    )
    grids = [
        cell.subgridspec(rows, n, wspace=0.08, hspace=0.08)
        for cell, n in zip(outer, counts, strict=True)
    ]
    return [
        [[figure.add_subplot(g[r, c]) for c in range(g.ncols)] for r in range(rows)] for g in grids
    ]


def _show(ax: Axes, pixels: Tensor, same: bool | None = None) -> None:
    ax.imshow(pixels[0], cmap="gray", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=same is not None, color=SAME if same else OTHER, linewidth=1.8)
        spine.set_linestyle("-" if same else "--")
