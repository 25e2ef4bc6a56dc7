"""Table 1: time and memory of the inverse step against n, d and L, with slopes, on random rows.

python benchmarks/paper/costs.py [--small | --full] [--out results]

The step is the product of the inverse with one vector, of rows that lie in memory.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import click
import numpy as np
import torch
from conditions import conditions
from given_rows import Rows, fitted, side_by_side
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

PAPER = {"datainf": "n d L", "lissa": "n d² L", "exact": "n d² L + d³ L"}
"""The orders of its Table 1, for L blocks of d parameters; memory d, d² and d²."""

BASE = {"n": 800, "d": 800, "L": 8}
AXES = {"n": (400, 800, 1600, 3200), "d": (400, 800, 1600, 3200), "L": (4, 8, 16, 32)}
METHODS = ("datainf", "lissa", "exact", "scaled-hessian-free", "loops")
STEPS = 10
"""Of LiSSA, as published, so that its time is comparable with the paper's."""


@click.command(context_settings={"show_default": True})
@click.option("--n", default=4500, help="Samples in the comparison with loops.")
@click.option("--rank", default=4)
@click.option("--width", default=384, help="Of the layers: a block has rank times width numbers.")
@click.option("--layers", default=12, help="Each has a matrix A and a matrix B.")
@click.option("--small", is_flag=True, help="Less than a minute.")
@click.option("--full", is_flag=True, help="The sizes of RoBERTa-large, value matrices: 8 GiB.")
@click.option("--repeat", default=3, help="Medians of so many; once for the slowest at 4,500.")
@click.option("--out", type=click.Path(path_type=Path), default="paper-results")
def main(small: bool, full: bool, repeat: int, out: Path, **size: int) -> None:
    """Writes OUT/costs.json."""
    torch.set_num_threads(1)
    axes = {axis: values[:2] for axis, values in AXES.items()} if small else AXES
    if small:
        size |= {"n": 100, "layers": 2}
    if full:
        size |= {"width": 1024, "layers": 24}
    scaling = {axis: along(axis, values, repeat) for axis, values in axes.items()}
    report = {
        "conditions": conditions() | {"LiSSA's steps": STEPS, "repetitions": repeat},
        "base": BASE,
        "paper": PAPER,
        "scaling": scaling,
        "slopes": {axis: slopes(table) for axis, table in scaling.items()},
        "at the paper's n": {"size": size, "cpu seconds": at_size(size, repeat)},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "costs.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: report[k] for k in ("slopes", "at the paper's n")}, indent=1))


def along(axis: str, values: tuple[int, ...], repeat: int) -> dict[str, Any]:
    """For each method seconds and MiB at each size."""
    table: dict[str, Any] = {axis: list(values)}
    for method in METHODS:
        cells = [measure(method, BASE | {axis: value}, repeat) for value in values]
        table[method] = {"seconds": [s for s, _ in cells], "MiB": [m for _, m in cells]}
        print(axis, method, table[method], flush=True)
    return table


def measure(method: str, size: dict[str, int], repeat: int) -> tuple[float, float | None]:
    """Seconds of CPU time, the median, and the peak of what the step allocates, in MiB."""
    step = prepared(method, random_rows(size["n"], [size["d"]] * size["L"]))
    taken = None if method == "loops" else round(peak(step) / 2**20, 3)  # which warms up as well
    return round(median(seconds(step) for _ in range(repeat)), 5), taken


def peak(step: Callable[[], Any]) -> float:
    """The most bytes of tensors that a step has at once, beside those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return float(np.cumsum([size for _, size in sorted(changes)]).max(initial=0))


def seconds(step: Callable[[], Any]) -> float:
    start = process_time()
    step()
    return process_time() - start


def random_rows(n: int, widths: list[int]) -> Rows:
    torch.manual_seed(0)
    return {f"block{i}": torch.randn(n, d) for i, d in enumerate(widths)}


def prepared(method: str, G: Rows) -> Callable[[], Any]:
    """The inverse step of a method for one vector, the mean of the first 100 rows."""
    v = {block: rows[:100].mean(0, keepdim=True) for block, rows in G.items()}
    if method == "loops":
        λ = {block: 0.1 * float(rows.square().mean()) for block, rows in G.items()}
        return lambda: loops(G, v, λ)
    x, y = side_by_side(v)
    settings = {"iterations": STEPS, "tolerance": 1e-12} if method == "lissa" else {}
    influence = fitted(method, G, **settings)
    return lambda: influence.influence_factors_by_block(x, y)


def loops(G: Rows, v: Rows, damping: dict[str, float]) -> dict[str, Tensor]:
    """DataInf as it is often written: sample by sample, for each of them block by block."""
    total = {block: torch.zeros_like(row[0]) for block, row in v.items()}
    n = len(next(iter(G.values())))
    for i in range(n):
        for block, λ in damping.items():
            g, query = G[block][i], v[block][0]
            c = (g * query).sum() / (λ + (g * g).sum())
            total[block] += (query - c * g) / (n * λ)
    return total


def slopes(table: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Of the logarithms of seconds and MiB against that of the size, by least squares."""
    [sizes] = [values for values in table.values() if isinstance(values, list)]
    return {
        method: {unit: slope(sizes, values) for unit, values in cells.items()}
        for method, cells in table.items()
        if isinstance(cells, dict)
    }


def slope(sizes: list[int], values: list[float | None]) -> float | None:
    """None where it was not measured."""
    if None in values:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


def at_size(size: dict[str, int], repeat: int) -> dict[str, list[float]]:
    """CPU seconds of each method on the same rows: the median, the smallest, the largest."""
    width = size["rank"] * size["width"]
    G = random_rows(size["n"], [width] * 2 * size["layers"])
    found = {}
    for method in METHODS:
        step = prepared(method, G)
        times = [seconds(step) for _ in range(1 if method in ("exact", "lissa") else repeat)]
        found[method] = [round(t, 3) for t in (median(times), min(times), max(times))]
        print(method, found[method], flush=True)
    return found


if __name__ == "__main__":
    main()
