"""What a run on disk costs beside the gradients: 48 blocks of 4,096 parameters, which cost little.

On a machine that others use compare processor seconds, which count all threads; on a quiet one with
two cores seconds are fewer, since rows are encoded and written while the next are computed.

python benchmarks/wide.py --help
"""

import tempfile
import warnings
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydvl_datainf import DataInfInfluence, run_influences

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

BLOCKS, WIDTH, CLASSES, BATCH = 48, 64, 4, 100


class Wide(nn.Module):
    """Many square layers; the last one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, CLASSES).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        """Logits."""
        for layer in self.layers:
            x = x + 0.3 * torch.tanh(layer(x))
        return self.head(x)


@click.command()
@click.option("--train", default=2000, show_default=True, help="n.")
@click.option("--test", default=64, show_default=True, help="m.")
@click.option("--repeats", default=3, show_default=True, help="Pairs of them.")
def main(train: int, test: int, repeats: int) -> None:
    """Compares a run with rows on disk with `fit` and `training_influences` in memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    influence = DataInfInfluence(Wide(), F.cross_entropy, batch_size=BATCH, rows="memory")
    x, y = torch.randn(train + test, WIDTH), torch.randint(0, CLASSES, (train + test,))
    samples, queries = TensorDataset(x[:train], y[:train]), TensorDataset(x[train:], y[train:])

    def in_memory() -> Tensor:
        fitted = influence.unfitted().fit(DataLoader(samples, BATCH))
        return fitted.training_influences(x[train:], y[train:])

    def on_disk() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            run = run_influences(
                influence, queries, samples, f"{folder}/run.zarr", rows="zarr", progress=False
            )
            return run.attrs["seconds"], torch.from_numpy(run.scores[...])

    expected = in_memory()
    pairs = [(timed(in_memory), timed(on_disk)) for _ in range(repeats)]
    memory, disk = (min(side, key=lambda cost: cost.processor) for side in zip(*pairs, strict=True))
    table = Table("", "seconds", "CPU seconds", title=f"n={train}, m={test}, 1 thread")
    for name, cost in (("in memory", memory), ("on disk", disk)):
        table.add_row(name, f"{cost.seconds:.2f}", f"{cost.processor:.2f}")
    stages, scores = disk.result
    for stage, seconds in stages.items():
        table.add_row(f"  {stage}", f"{seconds:.2f}", "")
    Console().print(table)
    processor = [disk.processor / memory.processor for memory, disk in pairs]
    seconds = [disk.seconds / memory.seconds for memory, disk in pairs]
    for what, ratios in (("CPU seconds", processor), ("seconds", seconds)):
        told = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        Console().print(f"{what}, on disk / in memory, median of {repeats} pairs: {told}")
    error = (scores - expected).abs().max() / expected.abs().max()
    Console().print(f"Largest difference: {error:.1e} of the largest score")


class Cost(NamedTuple):
    """What a call took, in seconds and in those of processors, and what it returned."""

    seconds: float
    processor: float
    result: Any


def timed(call: Callable[[], Any]) -> Cost:
    """Calls something once."""
    start = perf_counter(), process_time()
    result = call()
    return Cost(perf_counter() - start[0], process_time() - start[1], result)


if __name__ == "__main__":
    main()
