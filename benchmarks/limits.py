"""A complete run beside bare forward and backward passes over the same samples, in one process.

    python benchmarks/limits.py --help

Film reviews, in batches padded to their longest. The runs keep compressed rows in a store, and the
scores of some queries; one of them sorts the samples of larger batches by length (`max_tokens`).
"""

import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

import workload
from pydvl_datainf import CausalLM, DataInfInfluence, SequenceClassification, run_influences
from pydvl_datainf.demo.packages import model_folder, reviews_file
from pydvl_datainf.demo.reviews import Reviews, draw_reviews, read_reviews
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.demo.tuning import encode

sys.path.append(str(Path(__file__).with_name("language")))
import encoding
import models

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

Batch = dict[str, Tensor]
SIZES = {"minilm": (32, 48), "smollm2": (8, 64)}
"""For each model the samples in a batch, and the tokens at which a text is cut."""

SORTED = 8
"""Batches whose samples are sorted by length together."""


@click.command()
@click.option("--model", "name", type=click.Choice(list(SIZES)), default="minilm")
@click.option("--train", default=500, show_default=True, help="n.")
@click.option("--queries", default=20, show_default=True, help="m.")
@click.option("--repeats", default=3, show_default=True, help="Rounds, of which medians count.")
@click.option("--rank", default=None, type=int, help="Of compressed rows; None = the default.")
@click.option("--small", is_flag=True, help="To try the script: n = 64, m = 5, one round.")
@click.option("--threads", default=1, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default="~/.cache/pydvl-datainf")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file to write.")
def main(small: bool, threads: int, out: Path | None, **settings: Any) -> None:
    """Measures each in turn, and prints a table of seconds and of ratios to the bare passes."""
    torch.set_num_threads(threads)
    if small:
        settings |= {"train": 64, "queries": 5, "repeats": 1}
    report = {
        "settings": {k: v for k, v in settings.items() if k != "cache"},
        "machine": machine(threads),
        **measure(**settings),
    }
    show(report)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


def measure(
    name: str, train: int, queries: int, repeats: int, rank: int | None, cache: Path
) -> dict[str, Any]:
    """Rounds of all that is compared, one after the other, so that a busy moment falls on all."""
    size, tokens = SIZES[name]
    settings = DemoSettings(train=train, test=queries, tokens=tokens)
    drawn = draw_reviews(read_reviews(reviews_file()), settings)
    # In random order: training reviews come by length, which spares padding.
    order = torch.randperm(train, generator=torch.Generator().manual_seed(0)).numpy()
    sides = (drawn[0][order], drawn[1])
    if name == "minilm":
        model, objective = workload.lora_model(), SequenceClassification()
        data, collate = [reviews_as_samples(side, tokens) for side in sides], padded
    else:
        (model, data), objective = smollm2(sides, tokens, cache.expanduser()), CausalLM()
        collate = partial(encoding.to_batch, device="cpu")

    def loaders(batch: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        return tuple(DataLoader(side, batch, collate_fn=collate) for side in data)

    plain, large = loaders(size), loaders(SORTED * size)
    sorted_by_length = partial(DataInfInfluence, model, objective, max_tokens=size * tokens)
    seconds: dict[str, float] = {}
    work = {
        "bare passes": partial(bare, model, objective, plain),
        "gradients in memory": partial(in_memory, model, objective, plain),
        "run": partial(run, partial(DataInfInfluence, model, objective), plain, rank, seconds),
        "run, max_tokens": partial(run, sorted_by_length, large, rank, {}),
    }
    bare(model, objective, plain[1:])  # warm
    found: dict[str, list[tuple[float, float]]] = {what: [] for what in work}
    passed: dict[str, int] = {}
    for _ in range(repeats):
        for what, function in work.items():
            with counted(model, what, passed):
                found[what].append(timed(function))
    padded_tokens, real = count_tokens(plain)
    flops = 4 * passed_weights(model) * padded_tokens
    return {
        "sizes": {
            "samples": train + queries,
            "tokens": real,
            "tokens with padding": padded_tokens,
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "blocks": sum(p.requires_grad for p in model.parameters()),
        },
        "tokens passed forward": passed,
        "limits": {"bare passes, GFLOP/s": flops / best(found["bare passes"]) / 1e9} | limits(),
        "seconds": {what: [wall for wall, _ in each] for what, each in found.items()},
        "CPU seconds": {what: [cpu for _, cpu in each] for what, each in found.items()},
        "stages": {stage: round(s, 2) for stage, s in seconds.items()},
    }


# What is compared


def bare(model: nn.Module, objective: Any, data: Iterable[DataLoader[Any]]) -> None:
    """One forward and backward pass over all samples, into the adapters' gradients."""
    for loader in data:
        for batch in loader:
            objective.losses(model, batch).sum().backward()
    model.zero_grad()


def in_memory(
    model: nn.Module, objective: Any, data: tuple[DataLoader[Any], DataLoader[Any]]
) -> None:
    """The same by this package: a row for each sample, all of them kept, and λ."""
    influence = DataInfInfluence(model, objective, rows="memory").fit(data[0])
    for batch in data[1]:
        influence.loss_gradients_by_block(batch)


def run(
    build: Callable[[], DataInfInfluence],
    data: tuple[DataLoader[Any], DataLoader[Any]],
    rank: int | None,
    seconds: dict[str, float],
) -> None:
    """A complete run into a store; its stages' seconds are left in `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        done = run_influences(
            build(),
            data[1],
            data[0],
            f"{folder}/run.zarr",
            rows="compressed",
            rank=rank,
            progress=False,
        )
        seconds |= done.attrs["seconds"]


# Models and data


def reviews_as_samples(reviews: Reviews, tokens: int) -> list[Batch]:
    """For each review its tokens and its label, without padding."""
    encoded = encode(reviews, model_folder(), tokens)
    samples = [encoded[i] for i in range(len(encoded))]
    lengths = [int(sample["attention_mask"].sum()) for sample in samples]
    return [
        {name: t[:length] if t.ndim else t for name, t in sample.items()}
        for sample, length in zip(samples, lengths, strict=True)
    ]


def padded(samples: list[Batch]) -> Batch:
    """One batch, padded on the right to the longest."""
    return {
        name: nn.utils.rnn.pad_sequence([sample[name] for sample in samples], batch_first=True)
        if samples[0][name].ndim
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }


def smollm2(sides: Iterable[Reviews], tokens: int, cache: Path) -> tuple[nn.Module, list[Any]]:
    """SmolLM2 with LoRA on q and v, which learns to continue the first words of a review."""
    folder = models.model_folder(models.SMOLLM2, cache)
    tokenizer = models.load_tokenizer(folder)
    torch.manual_seed(0)
    base = models.load_base(folder, "float32", "cpu")
    model = models.with_lora(base, 8, 16, ("q_proj", "v_proj")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at its start, zero, A would have no gradient
            parameter.data.normal_(std=0.02)
    texts = [[tokenizer(text)["input_ids"][:tokens] for text in side.texts] for side in sides]
    return model, [[(ids[:2], ids[2:]) for ids in side] for side in texts]


def count_tokens(data: Iterable[DataLoader[Any]]) -> tuple[int, int]:
    """Tokens with padding and without."""
    masks = [batch["attention_mask"] for loader in data for batch in loader]
    return sum(mask.numel() for mask in masks), int(sum(mask.sum() for mask in masks))


@contextmanager
def counted(model: nn.Module, what: str, passed: dict[str, int]) -> Iterator[None]:
    """Counts the tokens that the model sees, padding included: the work that no load changes."""
    passed[what] = 0

    def add(module: nn.Module, args: Any, kwargs: Mapping[str, Tensor]) -> None:
        passed[what] += kwargs["input_ids"].numel()

    handle = model.register_forward_pre_hook(add, with_kwargs=True)
    yield
    handle.remove()


def passed_weights(model: nn.Module) -> int:
    """P: those that multiply each token, so that a token takes 2P operations each way."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if "layer" in name and p.ndim == 2)


# Limits of the machine


def limits(size: int = 1024, megabytes: int = 256) -> dict[str, float]:
    """Rates of matrix products and of the disk."""
    found = {}
    for dtype in (torch.float32, torch.float64):  # the best: others may be at work
        A = torch.randn(size, size, dtype=dtype)
        seconds = best([timed(lambda A=A: A @ A) for _ in range(9)])
        found[f"{str(dtype)[6:]} products, GFLOP/s"] = 2 * size**3 / seconds / 1e9
    content = os.urandom(2**20) * megabytes
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        found["disk, written, MB/s"] = len(content) / timed(partial(write, file, content))[0] / 1e6
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found["disk, read, MB/s"] = len(content) / timed(file.read_bytes)[0] / 1e6
    return found


def write(file: Path, content: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def machine(threads: int) -> dict[str, Any]:
    load = f"{os.getloadavg()[0]:.1f}"
    cores = os.cpu_count()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"cores": cores, "threads": threads, "load at the start": load, **versions}


# Timing


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and those of the processor, in processes that were started too."""
    start, before = perf_counter(), sum(os.times()[:4])
    function()
    return perf_counter() - start, sum(os.times()[:4]) - before


def best(found: Iterable[tuple[float, float]]) -> float:
    """The fewest seconds of the processor, or by the clock where it is too coarse."""
    return min(cpu if cpu > 0.2 else wall for wall, cpu in found)


def ratios(seconds: Mapping[str, list[float]], what: str) -> float:
    """The median over rounds of what something takes of the bare passes' time."""
    pairs = zip(seconds[what], seconds["bare passes"], strict=True)
    return median(taken / bare for taken, bare in pairs)


def show(report: Mapping[str, Any]) -> None:
    settings, sizes = report["settings"], report["sizes"]
    title = f"{settings['name']}: n = {settings['train']}, m = {settings['queries']}"
    table = Table("", "seconds", "ratio", "CPU seconds", "ratio", "tokens forward", title=title)
    for what in report["seconds"]:
        row = [what]
        for clock in ("seconds", "CPU seconds"):
            times = report[clock]
            row += [f"{median(times[what]):.2f}", f"{ratios(times, what):.2f}"]
        passed = report["tokens passed forward"][what]
        table.add_row(*row, f"{passed / sizes['tokens with padding']:.2f}")
    console = Console()
    console.print(table)
    for part in ("sizes", "stages", "limits"):
        console.print(part, {k: round(v, 2) for k, v in report[part].items()}, sep=": ")
    share = sizes["tokens"] / sizes["tokens with padding"]
    console.print(f"{share:.0%} of the tokens of the bare passes are no padding.")


if __name__ == "__main__":
    main()
