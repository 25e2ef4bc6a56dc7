"""Draws what correlation.py and costs.py wrote.

python benchmarks/paper/figures.py FOLDER
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLOURS = {  # of Okabe and Ito
    "exact": "#000000",
    "datainf": "#0072B2",
    "ekfac": "#009E73",
    "lissa": "#CC79A7",
    "lissa, 10 steps": "#E69F00",
    "lissa, published": "#F0E442",
    "scaled-hessian-free": "#56B4E9",
    "hessian-free": "#D55E00",
    "training loss": "#7F7F7F",
    "loops": "#7F7F7F",
}
SHOWN = {
    "datainf": "DataInf",
    "ekfac": "EK-FAC",
    "lissa": "LiSSA, 100 steps",
    "lissa, 10 steps": "LiSSA, 10 steps",
    "lissa, published": "LiSSA as published",
    "scaled-hessian-free": "scaled Hessian-free",
    "hessian-free": "Hessian-free",
}
AXES = {"n": "samples n", "d": "parameters of a block d", "L": "blocks L"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Writes correlation.png, flips.png and costs.png into FOLDER."""
    by_rank, of_step = folder / "correlation.json", folder / "costs.json"
    if by_rank.exists():
        runs = json.loads(by_rank.read_text())["runs"]
        figure = against_rank(runs, lambda run, name: run["correlation"][name][0], "correlation")
        figure.savefig(folder / "correlation.png", dpi=110)
        figure = against_rank(runs, lambda run, name: run["auc"][name], "auc")
        figure.savefig(folder / "flips.png", dpi=110)
    if of_step.exists():
        costs(json.loads(of_step.read_text())["scaling"]).savefig(folder / "costs.png", dpi=110)


def against_rank(
    runs: list[dict[str, Any]], value: Callable[[dict[str, Any], str], float], kind: str
) -> plt.Figure:
    """A panel for each task: means over seeds by rank, with standard errors."""
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure, axes = plt.subplots(1, len(tasks), figsize=(10, 4.4), sharey=True, squeeze=False)
    for ax, task in zip(axes[0], tasks, strict=True):
        of_task = [run for run in runs if run["task"] == task]
        for name in (name for name in COLOURS if name in runs[0][kind]):
            curve(ax, name, of_task, value)
        ranks = sorted({run["rank"] for run in of_task})
        ax.set(title=task, xlabel="LoRA rank", xscale="log", xticks=ranks)
        ax.set_xticks(ranks, ranks)
        ax.minorticks_off()
        ax.axhline(0.5 if kind == "auc" else 1, color="0.8", zorder=0)
    flips = "AUC of flipped labels"
    axes[0, 0].set_ylabel(flips if kind == "auc" else "Pearson correlation with exact")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right", frameon=False)
    figure.tight_layout(rect=(0, 0, 0.8, 1))
    return figure


def curve(
    ax: Axes, name: str, runs: list[dict[str, Any]], value: Callable[[dict[str, Any], str], float]
) -> None:
    by_rank: dict[int, list[float]] = {}
    for run in runs:
        by_rank.setdefault(run["rank"], []).append(value(run, name))
    means = [np.mean(each) for each in by_rank.values()]
    errors = [standard_error(each) for each in by_rank.values()]
    label = SHOWN.get(name, name)
    ax.errorbar(list(by_rank), means, errors, color=COLOURS[name], marker="o", ms=4, label=label)


def standard_error(each: list[float]) -> float:
    return float(np.std(each, ddof=1) / len(each) ** 0.5) if len(each) > 1 else 0.0


def costs(scaling: dict[str, Any]) -> plt.Figure:
    """Seconds above, MiB below, against n, d and L."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.5), sharey="row")
    for column, (axis, table) in zip(axes.T, scaling.items(), strict=True):
        for name in (name for name in COLOURS if name in table):
            for ax, unit in zip(column, ("seconds", "MiB"), strict=True):
                label = SHOWN.get(name, name).replace("100", "10")
                ax.loglog(table[axis], table[name][unit], "o-", ms=4, c=COLOURS[name], label=label)
        for ax in column:
            ax.minorticks_off()
            ax.set_xticks(table[axis], table[axis])
        column[1].set_xlabel(AXES[axis])
    axes[0, 0].set_ylabel("CPU seconds")
    axes[1, 0].set_ylabel("peak above the rows, MiB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right", frameon=False)
    figure.tight_layout(rect=(0, 0, 0.8, 1))
    return figure


if __name__ == "__main__":
    main()
