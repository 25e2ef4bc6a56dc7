"""What compressed rows of one wide layer cost in `fit` or in a run, with side bases and without.

python benchmarks/sides_cost.py [--width 2048] [--tokens 64] [--samples 256] [--rank 16] [--run]

One square linear layer on random tokens, one thread, batches of 8; each share of outputs and inputs
in a process of its own, whose peak above what it began with is printed (Linux). Directions are
learned from 2 · rank of the samples. A run asks for 8 queries, with 8 GiB of memory.
"""

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")

from pydvl_datainf import ExactInfluence, run_influences  # noqa: E402

SHARES = ("none", "0.5", "0.25", "0.125")
BATCH, CLASSES = 8, 4


class Layer(nn.Module):
    """The layer, and behind it the first numbers of the tokens' mean as logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Any:
        """Logits."""
        return (x + torch.tanh(self.wide(x))).square().mean(1)[:, :: x.shape[2] // CLASSES]


def cost(
    share: str, width: int, tokens: int, samples: int, rank: int, *, in_run: bool
) -> dict[str, Any]:
    """Processor seconds, the peak in MiB, and the energy that is kept."""
    torch.manual_seed(0)
    x, y = torch.randn(samples, tokens, width), torch.arange(samples) % CLASSES
    data = DataLoader(TensorDataset(x, y), BATCH)
    told = {} if share == "none" else {"sides": float(share)}
    told |= {"rows": "compressed", "rank": rank}
    influence = ExactInfluence(Layer(width), F.cross_entropy, **told)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = resident("VmRSS"), process_time()
    if in_run:
        energy = energy_of_run(influence, (x[:8], y[:8]), data, told)
    else:
        energy = influence.fit(data).energy
    return {
        "sides": share,
        "seconds": round(process_time() - start, 1),
        "MiB": round(resident("VmHWM") - before),
        "energy": round(energy["wide"], 3),
    }


def energy_of_run(
    influence: ExactInfluence, test: Any, data: Any, told: dict[str, Any]
) -> dict[str, float]:
    """That of a run in a folder which goes at its end."""
    with TemporaryDirectory() as folder:
        usual = {"memory": "8GiB", "progress": False}
        found = run_influences(influence, [test], data, f"{folder}/run.zarr", **usual, **told)
        return found.energy or {}


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Prints one line for each share."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 2048), ("tokens", 64), ("samples", 256), ("rank", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shares", nargs="+", default=SHARES)
    parser.add_argument("--run", action="store_true", help="a run in place of `fit`")
    parser.add_argument("--here", action="store_true", help="the one share, in this process")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {name: getattr(asked, name) for name in ("width", "tokens", "samples", "rank")}
    if asked.here:
        print(json.dumps(cost(asked.shares[0], **sizes, in_run=asked.run)))
        return
    for share in asked.shares:
        told = [f"--{name}={value}" for name, value in sizes.items()]
        told += ["--run"] if asked.run else []
        subprocess.run([sys.executable, __file__, "--here", "--shares", share, *told], check=True)


if __name__ == "__main__":
    main()
