"""What a wide layer's compressed rows cost, by whole rows and by side bases (see sides.py).

python benchmarks/sides_cost.py [--width 2048] [--tokens 64] [--samples 64] [--rank 32]

One square layer, random inputs x and output gradients e, one thread; each way in a process of its
own, whose peak above what it began with is printed (Linux). A basis is learned from 2 · rank of
the samples, and all are projected, 8 at once and in float64, as the package does with whole rows.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore")

from pydvl_datainf.gradients.rules import linear_weight  # noqa: E402
from pydvl_datainf.inverse.compression import (  # noqa: E402
    leading_directions,
    projected,
    remainders,
)

AT_ONCE = 8
WAYS = ("bare", "whole", "1", "2", "4", "8")
"""A forward and backward pass of the layer; whole rows; side bases of one of so many dimensions."""

Make = Callable[[Tensor, Tensor], Tensor]


def batches(e: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few samples at once."""
    return zip(e.split(AT_ONCE), x.split(AT_ONCE), strict=True)


def whole(e: Tensor, x: Tensor) -> Tensor:
    """Rows Σ_t e_t x_tᵀ, flattened."""
    return linear_weight(nn.Linear(1, 1), x, e).flatten(1)


def side_bases(e: Tensor, x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors of Σ G Gᵀ and Σ Gᵀ G, from e and x alone."""
    bases = []
    for left, right in ((e, x), (x, e)):
        M = torch.zeros(left.shape[2], left.shape[2])
        for a, b in batches(left, right):
            M += a.flatten(0, 1).mT @ (b @ b.mT @ a).flatten(0, 1)
        bases.append(torch.linalg.eigh(M.double())[1][:, -width:].float())
    return bases[0], bases[1]


def squared_norms(e: Tensor, x: Tensor) -> Tensor:
    """‖Σ_t e_t x_tᵀ‖² = Σ_tt' (e_t · e_t')(x_t · x_t')."""
    e, x = e.double(), x.double()
    return ((e @ e.mT) * (x @ x.mT)).sum((1, 2))


def cost(way: str, width: int, tokens: int, samples: int, rank: int) -> dict[str, Any]:
    """Processor seconds, of learning and of projecting, and the peak in MiB."""
    torch.manual_seed(0)
    e, x = torch.randn(2, samples, tokens, width)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = resident("VmRSS"), process_time()
    if way == "bare":
        W = torch.zeros(width, width)
        for a, b in batches(e, x):
            b @ W.mT, a @ W
        learned = start
    else:
        make: Make = whole
        sample = e[: 2 * rank], x[: 2 * rank]
        if way != "whole":
            Q_o, Q_i = side_bases(*sample, width // int(way))

            def make(e: Tensor, x: Tensor) -> Tensor:
                return whole(e @ Q_o, x @ Q_i)

        S = torch.cat([make(*batch) for batch in batches(*sample)])
        bases = {"": leading_directions(S, rank)}
        del S
        learned = process_time()
        for batch in batches(e, x):
            rows = {"": make(*batch)}
            kept = projected(rows, bases, torch.float64)
            if way == "whole":
                remainders(rows, kept)
            else:
                squared_norms(*batch) - kept[""].square().sum(1)
    return {
        "way": way,
        "learning": round(learned - start, 2),
        "a sample": round((process_time() - learned) / samples, 4),
        "peak": round(resident("VmHWM") - before),
    }


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Prints one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("width", 2048), ("tokens", 64), ("samples", 64), ("rank", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--here", action="store_true", help="the one way, in this process")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {name: getattr(asked, name) for name in ("width", "tokens", "samples", "rank")}
    if asked.here:
        print(json.dumps(cost(asked.ways[0], **sizes)))
        return
    for way in asked.ways:
        told = [f"--{name}={value}" for name, value in sizes.items()]
        subprocess.run([sys.executable, __file__, "--here", "--ways", way, *told], check=True)


if __name__ == "__main__":
    main()
