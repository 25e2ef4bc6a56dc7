"""Exact influences of 100 queries on 20,000 texts within 512 MiB and 2 GiB of disk, killed once.

    python benchmarks/large_run.py --help

MiniLM with LoRA of rank 4, and texts of the tokens of film reviews in random order. The run keeps
compressed rows in a store; it is killed while it computes gradients, and the same call goes on.
Beside it bare forward and backward passes over the same samples, in batches padded to their
longest. Processor seconds are of all threads, imports included, and of both parts of the run.
"""

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

import workload
from limits import Batch, bare, padded, reviews_as_samples
from pydvl_datainf import ExactInfluence, SequenceClassification, run_influences
from pydvl_datainf.demo.packages import reviews_file
from pydvl_datainf.demo.reviews import draw_reviews, read_reviews
from pydvl_datainf.demo.settings import DemoSettings

warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

TOKENS, BATCH, SORTED = 48, 32, 8
STORE = "run.zarr"


class Texts(Dataset[Batch]):
    """As many texts as wanted: reviews in turn, with their tokens in another order each time."""

    def __init__(self, samples: list[Batch], length: int, first: int = 0):
        self.samples, self.length, self.first = samples, length, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Batch:
        generator = torch.Generator().manual_seed(self.first + i)
        sample = self.samples[i % len(self.samples)]
        order = torch.randperm(len(sample["input_ids"]) - 2, generator=generator) + 1
        ids = sample["input_ids"].clone()
        ids[1:-1] = ids[order]
        return sample | {"input_ids": ids}


def texts(train: int, test: int) -> tuple[Texts, Texts]:
    reviews = draw_reviews(read_reviews(reviews_file()), DemoSettings(train=4000, test=1))[0]
    samples = reviews_as_samples(reviews, TOKENS)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    samples = [samples[i] for i in order]  # they come by length, which spares padding
    return Texts(samples, train), Texts(samples, test, first=10**9)


def complete_run(folder: Path, train: int, test: int, memory: str) -> None:
    """The run, with samples of some batches sorted by length."""
    tokens = {"max_tokens": BATCH * TOKENS}
    model = workload.lora_model()
    influence = ExactInfluence(model, SequenceClassification(), **tokens)
    loaders = [DataLoader(t, SORTED * BATCH, collate_fn=padded) for t in texts(train, test)]
    bare(model, SequenceClassification(), [DataLoader(loaders[1].dataset, 4, collate_fn=padded)])
    with peak_into(folder / "run"):
        run_influences(
            influence,
            loaders[1],
            loaders[0],
            folder / STORE,
            rows="compressed",
            memory=memory,
        )


def bare_passes(folder: Path, train: int, test: int) -> None:
    """In the loader of somebody who gives no thought to lengths."""
    loaders = [DataLoader(t, BATCH, collate_fn=padded) for t in texts(train, test)]
    model = workload.lora_model()
    bare(model, SequenceClassification(), [DataLoader(loaders[1].dataset, 4, collate_fn=padded)])
    with peak_into(folder / "bare"):
        bare(model, SequenceClassification(), loaders)


@contextmanager
def peak_into(file: Path) -> Iterator[None]:
    """Writes by how many MiB memory grew meanwhile, at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    yield
    file.write_text(str(resident("VmHWM") - before))


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def timed(*arguments: str, kill_when: Callable[[], bool] | None = None) -> tuple[float, float]:
    """Seconds of this script in a process of its own, by the clock and of the processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    while kill_when is not None and process.poll() is None:
        time.sleep(0.5)
        if kill_when():
            process.send_signal(signal.SIGKILL)
            break
    if process.wait() and kill_when is None:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, spent


def rows_written(folder: Path) -> int:
    """Training samples whose rows are in chunks of the store."""
    array = folder / STORE / "rows" / "0"
    if not (array / "zarr.json").exists():
        return 0
    described = json.loads((array / "zarr.json").read_text())
    length: int = described["chunk_grid"]["configuration"]["chunk_shape"][0]
    return length * len(list((array / "c").glob("*/0")))


def size_of(folder: Path) -> float:
    """MiB of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


@click.command()
@click.option("--train", default=20_000, show_default=True, help="n.")
@click.option("--test", default=100, show_default=True, help="m.")
@click.option("--memory", default="512MiB", show_default=True, help="Of our arrays.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON file to write.")
@click.option("--part", type=click.Choice(["run", "bare"]), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(part: str | None, folder: Path, out: Path | None, **sizes: Any) -> None:
    """Measures the run and the bare passes one after the other."""
    torch.set_num_threads(1)
    if part == "run":
        complete_run(folder, **sizes)
    elif part == "bare":
        bare_passes(folder, sizes["train"], sizes["test"])
    else:
        measure(sizes, out)


def measure(sizes: dict[str, Any], out: Path | None) -> None:
    """Each part in a process of its own, which gets the same sizes."""
    given = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = (*given, "--part", "run", "--folder", name)
        killed = timed(*run, kill_when=lambda: rows_written(folder) > sizes["train"] / 2)
        largest = size_of(folder)
        rest = timed(*run)
        kept = size_of(folder)
        passes = timed(*given, "--part", "bare", "--folder", name)
        run_peak, bare_peak = (float((folder / part).read_text()) for part in ("run", "bare"))
    found = sizes | {
        "seconds until killed, by the clock and of the processor": killed,
        "seconds of the rest": rest,
        "seconds of the bare passes": passes,
        "processor seconds, run / bare passes": (killed[1] + rest[1]) / passes[1],
        "MiB of files when killed": largest,
        "MiB of files": kept,
        "MiB of memory at the peak, above the model's: run": run_peak,
        "bare passes": bare_peak,
    }
    Console().print(found)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
