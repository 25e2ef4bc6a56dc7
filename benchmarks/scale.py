"""How runs grow: memory, time, gradients and workers, as ratios in one run on one machine.

python benchmarks/scale.py --help
"""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch
from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

import scale_workload as workload
from pydvl_datainf import InfluenceRun, run_influences

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

# Dask's nanny sets glibc to give memory back after every use, which doubles the time of a worker.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}

ROWS = ("memory", "zarr", "recompute")


@click.command()
@click.option(
    "--train", default=8000, show_default=True, help="n; a quarter and 4 times as many too."
)
@click.option("--test", default=64, show_default=True, help="m; a quarter and 4 times as many too.")
@click.option("--memory", default="256MiB", show_default=True, help="For our arrays.")
def main(train: int, test: int, memory: str) -> None:
    """Measures and prints one table for each question."""
    torch.set_num_threads(1)
    console = Console()
    console.print(
        f"torch {torch.__version__}, 1 thread, {os.cpu_count()} cores, n={train}, m={test}"
    )
    with tempfile.TemporaryDirectory() as folder:
        console.print(peaks(train, test, memory))
        console.print(times(Path(folder), train, test))
        console.print(gradients(Path(folder), train, test))
        console.print(further_queries(Path(folder), train, test))
        console.print(accuracy(Path(folder), train // 4, test))
        console.print(workers(Path(folder), train, test))


def peaks(train: int, test: int, memory: str) -> Table:
    """Peak memory for three numbers of training samples, beside that of bare passes."""
    sizes = (train // 4, train, 4 * train)
    table = Table("rows", *(f"n = {n:,}" for n in sizes), title=f"Peak MiB, memory={memory}")
    table.add_row("bare passes", f"{peak('bare', train, test, memory):.0f}")
    for rows in ("zarr", "recompute"):
        table.add_row(rows, *(f"{peak(rows, n, test, memory):.0f}" for n in sizes))
    return table


def peak(rows: str, n: int, m: int, memory: str) -> float:
    """Of one run, in a process of its own."""
    script = Path(__file__).with_name("scale_peak.py")
    command = [sys.executable, str(script), rows, str(n), str(m), memory]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def times(folder: Path, train: int, test: int) -> Table:
    """Seconds for a quarter, as many and four times as many samples of either side."""
    table = Table("rows", "n", "m", "seconds", "ratio", title="Time")
    for rows in ("zarr", "recompute"):
        first = None
        for n, m in (
            (train, test),
            (train // 4, test),
            (4 * train, test),
            (train, test // 4),
            (train, 4 * test),
        ):
            seconds, _ = timed(folder, n, m, rows=rows)
            first = first or seconds
            table.add_row(rows, f"{n:,}", f"{m:,}", f"{seconds:.1f}", f"{seconds / first:.2f}")
    return table


def gradients(folder: Path, train: int, test: int) -> Table:
    """Per-sample gradients computed, in units of n beyond m."""
    table = Table("rows", "λ", "gradients", "(gradients - m) / n", title="Counted")
    for rows in ROWS:
        for given in (None, 1e-3):
            run = new_run(folder, train // 4, test, given=given, rows=rows)
            count = run.attrs["gradients"]
            passes = (count - test) / (train // 4)
            table.add_row(
                rows, "automatic" if given is None else "given", f"{count:,}", f"{passes:g}"
            )
    return table


def further_queries(folder: Path, train: int, test: int) -> Table:
    """A second set of queries on the rows that the first run kept."""
    seconds, first = timed(folder, train, test, rows="zarr")
    start = perf_counter()
    second = run_influences(
        workload.influence(),
        workload.Texts(test, 2 * 10**9),
        first,
        folder / "second.zarr",
        progress=False,
        overwrite=True,
    )
    again = perf_counter() - start
    table = Table("", "seconds", "ratio", "gradients", title="A second set of queries")
    table.add_row("first run", f"{seconds:.1f}", "1.00", f"{first.attrs['gradients']:,}")
    table.add_row(
        "query", f"{again:.1f}", f"{again / seconds:.2f}", f"{second.attrs['gradients']:,}"
    )
    return table


def accuracy(folder: Path, train: int, test: int) -> Table:
    """How much half-precision rows change scores, in units of each query's root mean square."""
    exact = torch.from_numpy(new_run(folder, train, test, rows="recompute").scores[...])
    half = torch.from_numpy(new_run(folder, train, test, rows="zarr").scores[...])
    error = (half - exact).abs() / exact.square().mean(1, keepdim=True).sqrt()
    table = Table("largest", "root mean square", title="Error of scores from rows on disk")
    table.add_row(f"{error.max():.1e}", f"{error.square().mean().sqrt():.1e}")
    return table


def workers(folder: Path, train: int, test: int) -> Table:
    """One and two Dask workers of one thread, and this process."""
    table = Table("", "seconds", "ratio", title="Workers, rows recomputed")
    first, _ = timed(folder, train, test, rows="recompute")
    table.add_row("in process", f"{first:.1f}", "1.00")
    for what, environment in (("as Dask starts them", {}), ("with MALLOC_* set", ALLOCATOR)):
        os.environ.update(environment)  # of the workers
        for count in (1, 2):
            seconds = on_workers(count, folder, train, test)
            table.add_row(f"{count} workers {what}", f"{seconds:.1f}", f"{seconds / first:.2f}")
    return table


def on_workers(count: int, folder: Path, train: int, test: int) -> float:
    """Seconds of a run on a cluster that has imported everything."""
    cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster) as client:
        timed(folder, 64, 8, rows="recompute", client=client)
        return timed(folder, train, test, rows="recompute", client=client)[0]


def timed(folder: Path, n: int, m: int, **settings: Any) -> tuple[float, InfluenceRun]:
    """Seconds of a run, and the run."""
    start = perf_counter()
    run = new_run(folder, n, m, **settings)
    return perf_counter() - start, run


def new_run(
    folder: Path, n: int, m: int, given: float | None = None, **settings: Any
) -> InfluenceRun:
    """A run that nothing is known of."""
    model = workload.influence()
    if given is not None:
        model.with_regularization(given)
    store = folder / f"{settings['rows']}.zarr"
    return run_influences(
        model,
        workload.queries(m),
        workload.Texts(n),
        store,
        overwrite=True,
        progress=False,
        **settings,
    )


if __name__ == "__main__":
    main()
