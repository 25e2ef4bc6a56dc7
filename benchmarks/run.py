"""Speed, agreement and memory of the complete job, as ratios in one run on one machine.

    python benchmarks/run.py --help

The job: fit on 512 reviews with automatic damping, then the influence of each on 64 test reviews.
"""

import subprocess
import sys
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import workload
from pydvl_datainf import DataInfInfluence, SequenceClassification

# Importing pyDVL 0.10 and peft announces deprecations of their own.
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)


@click.command()
@click.option("--train", default=512, show_default=True, help="Training reviews.")
@click.option("--test", default=64, show_default=True, help="Test reviews.")
@click.option("--repeats", default=5, show_default=True, help="Runs, of which the median counts.")
@click.option("--pydvl-repeats", default=1, show_default=True, help="The same for pyDVL's class.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
def main(train: int, test: int, repeats: int, pydvl_repeats: int, threads: int) -> None:
    """Measures and prints one table for each question."""
    torch.set_num_threads(threads)
    console = Console()
    console.print(f"torch {torch.__version__}, {threads} threads, {train} + {test} reviews")
    console.print(against_bare_passes(train, test, repeats))
    console.print(memory(train))
    console.print(agreement())
    console.print(against_pydvl(train, test, repeats, pydvl_repeats))


def against_bare_passes(train: int, test: int, repeats: int) -> Table:
    """The complete job against one forward and backward pass of all its reviews."""
    model = workload.lora_model()
    fitted, queries = workload.reviews(train, test)
    workload.forward_and_backward(model, fitted[:2])  # warm
    bare, kept, again = [], [], []
    for _ in range(repeats):  # side by side, so that a busy moment falls on all
        bare.append(timed(workload.forward_and_backward, model, [*fitted, *queries]))
        kept.append(timed(job, model, fitted, queries, "memory"))
        again.append(timed(job, model, fitted, queries, "recompute"))
    table = Table("", "median s", "ratio", title="Against one bare forward and backward pass")
    table.add_row("bare passes", f"{median(bare):.2f}", "1.00")
    for name, seconds in (("job, rows kept", kept), ("job, rows recomputed", again)):
        ratios = [s / b for s, b in zip(seconds, bare, strict=True)]
        table.add_row(name, f"{median(seconds):.2f}", f"{median(ratios):.2f}")
    return table


def against_pydvl(train: int, test: int, repeats: int, pydvl_repeats: int) -> Table:
    """The complete job against pyDVL's own class: eager attention and no mask, or that fails."""
    model = Logits(workload.lora_model())
    model.inner.set_attn_implementation("eager")
    fitted, queries = (pairs(side) for side in workload.reviews(train, test))
    ours = median(timed(our_scores, model, fitted, queries) for _ in range(repeats))
    theirs = median(timed(pydvl_scores, model, fitted, queries) for _ in range(pydvl_repeats))
    table = Table("", "median s", "ratio", title="Against pyDVL's InverseHarmonicMeanInfluence")
    table.add_row("this package", f"{ours:.2f}", "1.0")
    table.add_row("pyDVL 0.10", f"{theirs:.2f}", f"{theirs / ours:.1f}")
    return table


def agreement(train: int = 64, test: int = 8) -> Table:
    """Largest error of both classes against the formula in float64, relative to the largest score.

    Gradients for the formula come from one float64 backward pass per sample.
    """
    model = Logits(workload.lora_model())
    model.inner.set_attn_implementation("eager")
    fitted, queries = (pairs(side) for side in workload.reviews(train, test))
    exact = formula(model.double(), fitted, queries)
    model.float()
    table = Table("", "error", title="Error against the formula in float64")
    for name, compute in (("this package", our_scores), ("pyDVL 0.10", pydvl_scores)):
        error = (compute(model, fitted, queries).double() - exact).abs().max() / exact.abs().max()
        table.add_row(name, f"{error:.1e}")
    return table


def memory(train: int) -> Table:
    """Peak memory of the job with 16 test reviews, in processes of their own."""
    title = "Peak MiB above the loaded model, by training reviews"
    table = Table("", "bare passes", "rows recomputed", "rows kept", title=title)
    for n in (train // 4, train // 2, train):
        peaks = [child_peak(rows, n) for rows in ("bare", "recompute", "memory")]
        table.add_row(str(n), *(f"{peak:.0f}" for peak in peaks))
    return table


def job(
    model: nn.Module, fitted: list[workload.Batch], queries: list[workload.Batch], rows: str
) -> Tensor:
    influence = DataInfInfluence(
        model, SequenceClassification(), rows=rows, batch_size=workload.BATCH_SIZE
    )
    return influence.fit(fitted).training_influences(workload.joined(queries))


class Logits(nn.Module):
    """The model as pyDVL can take it: from token ids to logits."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input_ids=x).logits


def pairs(batches: list[workload.Batch]) -> tuple[Tensor, Tensor]:
    batch = workload.joined(batches)
    return batch["input_ids"], batch["labels"]


DAMPING = 1e-4  # one number for all blocks: a number per block is an error in pyDVL 0.10


def our_scores(model: nn.Module, fitted: tuple[Tensor, ...], queries: tuple[Tensor, ...]) -> Tensor:
    loader = DataLoader(TensorDataset(*fitted), batch_size=workload.BATCH_SIZE)
    influence = DataInfInfluence(
        model,
        nn.functional.cross_entropy,
        DAMPING,
        workload.lora_blocks(model),
        batch_size=workload.BATCH_SIZE,
    )
    return influence.fit(loader).training_influences(*queries)


def pydvl_scores(
    model: nn.Module, fitted: tuple[Tensor, ...], queries: tuple[Tensor, ...]
) -> Tensor:
    from pydvl.influence.torch import InverseHarmonicMeanInfluence

    loader = DataLoader(TensorDataset(*fitted), batch_size=workload.BATCH_SIZE)
    influence = InverseHarmonicMeanInfluence(
        model, nn.functional.cross_entropy, DAMPING, workload.lora_blocks(model)
    ).fit(loader)
    factors = influence.influence_factors(*queries)
    return torch.cat([influence.influences_from_factors(factors, *b) for b in loader], dim=1)


def formula(model: nn.Module, fitted: tuple[Tensor, ...], queries: tuple[Tensor, ...]) -> Tensor:
    """Σ over blocks of (1/(n λ)) Σ_i ( v·g_k − (g_i·v)(g_i·g_k) / (λ + ‖g_i‖²) )."""
    total = torch.zeros(len(queries[0]), len(fitted[0]), dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    g, v = (gradients(model, parameters, data) for data in (fitted, queries))
    for G, V in zip(g, v, strict=True):
        K, A = G @ G.T, V @ G.T
        weights = 1 / (DAMPING + K.diag())
        total += (A - (A * weights) @ K / len(G)) / DAMPING
    return total


def gradients(
    model: nn.Module, parameters: list[nn.Parameter], data: tuple[Tensor, ...]
) -> list[Tensor]:
    """For each parameter the gradients of all samples as rows, by one backward pass per sample."""
    samples = [
        torch.autograd.grad(nn.functional.cross_entropy(model(x[None]), y[None]), parameters)
        for x, y in zip(*data, strict=True)
    ]
    return [torch.stack(grads).flatten(1) for grads in zip(*samples, strict=True)]


def timed(function, *args) -> float:  # type: ignore[no-untyped-def]
    start = perf_counter()
    function(*args)
    return perf_counter() - start


def child_peak(rows: str, train: int) -> float:
    """Peak MiB above the loaded model of a process that does the job, or only bare passes."""
    script = Path(__file__).with_name("peak.py")
    command = [sys.executable, str(script), rows, str(train)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
