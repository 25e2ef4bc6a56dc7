"""Draws the results of influential.py, one column of panels for each task.

python benchmarks/language/figure.py FOLDER
"""

import json
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
from generators import TASKS
from matplotlib.axes import Axes

GRADIENTS, OTHERS = "#0072B2", "#D55E00"  # two of Okabe and Ito's colours
PAPER = {  # Llama-2-13B-chat, 900 training samples: AUC and recall
    "sentences": {"DataInf": (1.0, 0.997), "Hessian-free": (0.999, 0.985)},
    "maths": {"DataInf": (1.0, 0.999), "Hessian-free": (0.770, 0.258)},
    "maths-reasoning": {"DataInf": (1.0, 0.996), "Hessian-free": (0.772, 0.258)},
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Writes FOLDER/methods.png from the JSON files in FOLDER."""
    reports = {task: folder / f"{task}.json" for task in TASKS}
    found = {task: json.loads(f.read_text()) for task, f in reports.items() if f.exists()}
    figure, axes = plt.subplots(
        2, len(found), figsize=(1.5 + 3.6 * len(found), 7), sharey=True, squeeze=False
    )
    for (task, report), column in zip(found.items(), axes.T, strict=True):
        column[0].set_title(f"{task} ({report['accuracy']:.0%} exact answers)")
        for i, (ax, measure) in enumerate(zip(column, ("auc", "recall"), strict=True)):
            panel(ax, report, measure, {name: both[i] for name, both in PAPER[task].items()})
    axes[0, 0].invert_yaxis()
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.savefig(folder / "methods.png", dpi=100)


def panel(ax: Axes, report: dict[str, Any], measure: str, paper: dict[str, float]) -> None:
    """A row for each method: a dot for each class, and the mean over queries."""
    guess = 0.5 if measure == "auc" else 1 / report["settings"]["classes"]
    ax.axvline(guess, color="0.8", zorder=0, label="guessing")
    for row, (name, each) in enumerate(report["methods"].items()):
        colour = OTHERS if name.startswith(("RepSim", "Bag")) else GRADIENTS
        values, mean = list(each[measure]["by_class"].values()), each[measure]["mean"]
        first = row == 0
        label = "a class" if first else None
        ax.scatter(values, [row] * len(values), s=14, color=colour, alpha=0.35, label=label)
        label = "mean over queries" if first else None
        ax.scatter([mean], [row], s=90, marker="|", color=colour, linewidth=2.5, label=label)
        if name in paper:
            label = "Llama-2-13B, as published" if first else None
            ax.scatter(
                [paper[name]], [row], s=40, marker="^", edgecolor="k", color="w", label=label
            )
    ax.set_yticks(range(len(report["methods"])), list(report["methods"]))
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("AUC" if measure == "auc" else "recall")
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
