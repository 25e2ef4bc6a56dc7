"""What a second Dask worker brings to a run whose gradients take long.

python benchmarks/workers.py --help

Seconds tell only on a machine with nothing else to do; processor seconds of the busiest worker,
the least that such a machine would take, tell elsewhere too.
"""

import os
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import click
from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

import scale_workload as workload
from pydvl_datainf import run_influences

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)


class Cost(NamedTuple):
    """What a run took: seconds, processor seconds of each worker and here, seconds by stage."""

    seconds: float
    workers: list[float]
    here: float
    stages: dict[str, float]


@click.command()
@click.option("--train", default=20_000, show_default=True, help="n.")
@click.option("--test", default=64, show_default=True, help="m.")
@click.option("--tokens", default=workload.TOKENS, show_default=True, help="Of each text.")
@click.option("--workers", default=2, show_default=True, help="Beside one, of one thread each.")
def main(train: int, test: int, tokens: int, workers: int) -> None:
    """Compares a run with rows on disk on one worker with the same run on several."""
    os.environ |= {"OMP_NUM_THREADS": "1"}  # of the workers
    one, several = (cost(count, train, test, tokens) for count in (1, workers))
    title = f"n={train:,}, m={test}, {tokens} tokens, {os.cpu_count()} cores, rows on disk"
    table = Table("", "1 worker", f"{workers} workers", "ratio", title=title)
    add(table, "seconds", one.seconds, several.seconds)
    add(table, "processor seconds of the busiest worker", max(one.workers), max(several.workers))
    add(table, "of all workers", sum(one.workers), sum(several.workers))
    add(table, "of this process and the scheduler", one.here, several.here)
    for stage, seconds in one.stages.items():
        add(table, f"seconds of {stage}", seconds, several.stages[stage])
    Console().print(table)


def add(table: Table, what: str, one: float, several: float) -> None:
    """A row with the ratio of its numbers."""
    ratio = f"{one / several:.2f}" if several > 0 else ""
    table.add_row(what, f"{one:.1f}", f"{several:.1f}", ratio)


def cost(count: int, train: int, test: int, tokens: int) -> Cost:
    """Of a run on a cluster that has imported everything."""
    cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
    with tempfile.TemporaryDirectory() as folder, cluster, Client(cluster) as client:
        run(client, Path(folder, "first.zarr"), 8 * workload.BATCH_SIZE * count, test, tokens)
        before, here = client.run(processor_seconds), processor_seconds()
        start = perf_counter()
        stages = run(client, Path(folder, "run.zarr"), train, test, tokens)
        seconds = perf_counter() - start
        after = client.run(processor_seconds)
        own = [after[worker] - before[worker] for worker in after]
        return Cost(seconds, own, processor_seconds() - here, stages)


def run(client: Client, store: Path, train: int, test: int, tokens: int) -> dict[str, float]:
    """Seconds of its stages."""
    done = run_influences(
        workload.influence(),
        workload.queries(test, tokens),
        workload.Texts(train, tokens=tokens),
        store,
        client=client,
        rows="zarr",
        progress=False,
    )
    stages: dict[str, float] = done.attrs["seconds"]
    return stages


def processor_seconds() -> float:
    """Of all threads of a process, and of the system for it."""
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
