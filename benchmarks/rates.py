"""Rates of this machine from which the time of a large run follows (docs/sizing.md).

python benchmarks/rates.py --help

Per token: forward and backward passes of a small Llama with LoRA, and the rows of this package. Per
byte: rows in half precision, encoded, decoded, written and read. Per operation: the inverse step.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import click
import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pydvl_datainf import CausalLM, DataInfInfluence
from pydvl_datainf.fingerprint import fingerprint
from pydvl_datainf.inverse.damping import squared_norms
from pydvl_datainf.inverse.methods import DATAINF
from pydvl_datainf.results.half_precision import decode, encode
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.batched_data import ListedBatches, index_batches

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

RANK = 8
WIDTH = RANK * 4096  # of one LoRA matrix of a 7B model
Batch = dict[str, Tensor]


@click.command()
@click.option("--hidden", default=512, show_default=True, help="Width of the small model.")
@click.option("--layers", default=4, show_default=True)
@click.option("--tokens", default=256, show_default=True, help="In a sample; half are answers.")
@click.option("--batch", default=4, show_default=True, help="Samples in a batch.")
@click.option("--test", default=100, show_default=True, help="Queries in the inverse step.")
@click.option("--megabytes", default=512, show_default=True, help="Rows on disk.")
@click.option("--repeats", default=7, show_default=True, help="Runs, of which the median counts.")
@click.option("--folder", help="Where to write; None = the system's temporary folder.")
def main(
    hidden: int,
    layers: int,
    tokens: int,
    batch: int,
    test: int,
    megabytes: int,
    repeats: int,
    folder: str | None,
) -> None:
    """Measures and prints one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table("what", "rate", "ratio", title=f"torch {torch.__version__}, 1 thread")
    add_passes(table, hidden, layers, tokens, batch, repeats)
    table.add_section()
    add_bytes(table, repeats)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        add_storage(table, Path(place), megabytes, repeats)
    table.add_section()
    add_inverse(table, batch, test, repeats)
    table.add_section()
    add_checks(table, hidden, layers, tokens, repeats)
    Console().print(table)


# Per token


def add_passes(
    table: Table, hidden: int, layers: int, tokens: int, batch: int, repeats: int
) -> None:
    """Microseconds a token, and the ratio to a forward pass."""
    model, data = lora_llama(hidden, layers), text_batch(batch, tokens)
    everything = lora_llama(hidden, layers)
    everything.requires_grad_(True)
    influence = DataInfInfluence(model, CausalLM())
    for _ in range(4):  # the first batch is checked against plain autograd, later ones seldom
        influence.loss_gradients_by_block(data)
    times = measured(
        {
            "forward": partial(forward, model, data),
            "forward and backward, LoRA": partial(forward_and_backward, model, data),
            "rows of this package": partial(influence.loss_gradients_by_block, data),
            "forward and backward, all weights": partial(forward_and_backward, everything, data),
        },
        repeats,
    )
    for what, seconds in times.items():
        each = 1e6 * median(seconds) / (batch * tokens)
        ratios = [s / f for s, f in zip(seconds, times["forward"], strict=True)]
        table.add_row(what, f"{each:.0f} µs/token", f"{median(ratios):.2f}")
    flops = 2 * passed_weights(model) * batch * tokens / median(times["forward"])
    table.add_row("the forward pass, as 2P operations a token", f"{flops / 1e9:.0f} GFLOP/s", "")


def lora_llama(hidden: int, layers: int) -> nn.Module:
    """Of Llama's proportions, random, in float32; the vocabulary is small."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    lora = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"])
    model: nn.Module = get_peft_model(LlamaForCausalLM(config), lora).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at its start, zero, A would have no gradient
            parameter.data.normal_(std=0.02)
    return model


def passed_weights(model: nn.Module) -> int:
    """P: those of layers that multiply each token; the output layer only sees answers."""
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)


def text_batch(length: int, tokens: int) -> Batch:
    ids = torch.randint(1, 1000, (length, tokens))
    labels = ids.clone()
    labels[:, : tokens // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def forward(model: nn.Module, data: Batch) -> None:
    with torch.no_grad():
        CausalLM().losses(model, data)


def forward_and_backward(model: nn.Module, data: Batch) -> None:
    CausalLM().losses(model, data).sum().backward()


# Per byte


def add_bytes(table: Table, repeats: int) -> None:
    """Rates in bytes of rows in half precision, which is what lies on disk."""
    rows = torch.randn(64, WIDTH)
    norms, halves = squared_norms(rows), torch.empty_like(rows, dtype=torch.float16)
    scales, wide = encode(rows, norms, halves), torch.empty_like(rows, dtype=torch.float64)
    seconds = medians(
        {
            "rows encoded": partial(encode, rows, norms, halves),
            "rows decoded": partial(decode, halves, scales, wide),
            "norms of rows": partial(squared_norms, rows),
        },
        repeats,
    )
    for what, time in seconds.items():
        table.add_row(what, per_second(2 * rows.numel(), time), "")


def add_storage(table: Table, folder: Path, megabytes: int, repeats: int) -> None:
    """Rows as a run stores them, in chunks of 128 MiB; by the clock on the wall."""
    D = 128 * WIDTH
    tile = 2**27 // (2 * D)
    tiles = max(1, megabytes * 2**20 // 2**27)
    halves = torch.randn(tile, D).half().numpy()
    times: dict[str, list[float]] = {}
    for repeat in range(max(2, repeats // 2)):
        store = Store(folder / f"{repeat}.zarr")
        store.create({})
        store.require("rows", (tile * tiles, D), (tile, D), "float16", ("train", "parameter"))
        store.write("rows", slice(0, tile), halves)  # warm
        for what, function in (
            ("rows written, to the page cache", partial(write, store, halves)),
            ("rows written, until they are on disk", partial(rewrite, store, halves)),
            ("rows read, from disk", partial(read, store, tile)),
            ("rows read, from the page cache", partial(read, store, tile)),
        ):
            if "from disk" in what:
                evict(store)
            times.setdefault(what, []).append(timed(function))
    for what, seconds in times.items():
        table.add_row(what, per_second(tiles * halves.nbytes, median(seconds)), "")


def write(store: Store, halves: npt.NDArray[np.float16]) -> None:
    """The same tile as often as it fits."""
    tile = len(halves)
    for start in range(0, store.array("rows").shape[0], tile):
        store.write("rows", slice(start, start + tile), halves)


def rewrite(store: Store, halves: npt.NDArray[np.float16]) -> None:
    write(store, halves)
    for path in chunks(store):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read(store: Store, tile: int) -> None:
    for start in range(0, store.array("rows").shape[0], tile):
        store.read("rows", slice(start, start + tile))


def evict(store: Store) -> None:
    """Asks the kernel (Linux) to forget the chunks, so that they are read from disk."""
    for path in chunks(store):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def chunks(store: Store) -> list[Path]:
    assert store.path is not None
    return [path for path in (store.path / "rows" / "c").rglob("*") if path.is_file()]


# The inverse


def add_inverse(table: Table, batch: int, test: int, repeats: int) -> None:
    """Operations a second, for pieces of one batch and of 128 samples."""
    V = torch.randn(test, WIDTH, dtype=torch.float64)
    for b in (batch, 128):
        G = torch.randn(b, WIDTH)
        seconds = medians(
            {
                "correction, two products": partial(DATAINF.times(V, 1.0, b).add, G),
                "scores, one product": lambda G=G: V @ G.double().mT,
            },
            repeats,
        )
        for (what, time), products in zip(seconds.items(), (2, 1), strict=True):
            flops = products * 2 * b * test * WIDTH / time
            table.add_row(f"{what}, {b} rows", f"{flops / 1e9:.0f} GFLOP/s", "")


# What is read once


def add_checks(table: Table, hidden: int, layers: int, tokens: int, repeats: int) -> None:
    model = lora_llama(2 * hidden, layers)
    data = ListedBatches([text_batch(64, tokens)] * 8)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    texts = sum(t.numel() * t.element_size() for t in data.read(0).values()) * len(data)
    seconds = medians(
        {
            "checksums of the model": partial(fingerprint, model),
            "checksums of the data": partial(index_batches, data, 0, len(data)),
        },
        repeats,
    )
    for (what, time), size in zip(seconds.items(), (weights, texts), strict=True):
        table.add_row(what, per_second(size, time), "")


# Timing


def measured(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, one after the other in turn, so that a busy moment falls on all.

    They are those of the processor (one thread), which other programs lengthen less.
    """
    times: dict[str, list[float]] = {what: [] for what in work}
    for repeat in range(repeats + 1):  # the first is not counted
        for what, function in work.items():
            seconds = timed(function, process_time)
            if repeat:
                times[what].append(seconds)
    return times


def medians(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    return {what: median(seconds) for what, seconds in measured(work, repeats).items()}


def timed(function: Callable[[], object], clock: Callable[[], float] = perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


def per_second(size: int, seconds: float) -> str:
    return f"{size / seconds / 1e6:,.0f} MB/s"


if __name__ == "__main__":
    main()
