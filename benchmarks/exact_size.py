"""The exact inverse of one block over 10³ to 10⁶ samples: the space it works in, time and memory.

python benchmarks/exact_size.py [--most 1000000] [--queries 32] [--out results/exact_size.json]

Rows are random float32, as wide as compressed rows of rank 128, and some as wide as whole ones.
They are made in chunks of 512, anew for each pass, as a run reads them from its store; the seconds
that this takes are told apart. A size is done in a process of its own, on one thread. Its peak is
that of the process beside what it took before the first row; scores are made chunk by chunk, and
not kept. The residual ‖(H + λ I) x − v‖/‖v‖, from one more pass, shows that this is the inverse.
"""

import argparse
import json
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import torch

from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.methods import EXACT
from pydvl_datainf.inverse.woodbury import InParameters
from pydvl_datainf.vectors import product

RANK, WHOLE = 128, 8192
SIZES = [(100, RANK), *((10**k, RANK) for k in range(3, 7)), (100, WHOLE), (1000, WHOLE)]
CHUNK = 512
DAMPING = 0.1
"""λ, for rows of standard normal numbers by the rule of automatic damping."""


def rows(n, d):
    """The same rows on every pass, chunk by chunk."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, CHUNK):
        yield torch.randn(min(CHUNK, n - start), d, generator=generator)


def seconds(function):
    """How long a function takes, and what it gives."""
    start = process_time()
    result = function()
    return process_time() - start, result


def peak():
    """Most bytes that this process had so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(n, d, m):
    """What one size takes."""
    torch.set_num_threads(1)
    V = torch.randn(m, d, generator=torch.Generator().manual_seed(1))
    solve(EXACT.times, {"": V[:, :2]}, lambda: [{"": torch.ones(4, 2)}], 4, {"": DAMPING})  # loads
    making, _ = seconds(lambda: sum(len(G) for G in rows(n, d)))
    before = peak()

    def passes():
        return ({"": G} for G in rows(n, d))

    solving, found = seconds(lambda: solve(EXACT.times, {"": V}, passes, n, {"": DAMPING}))
    X = found[""]
    scoring, _ = seconds(lambda: sum(float(product(X, G).sum()) for G in rows(n, d)))
    memory = peak() - before
    HX = sum(product(X, G) @ G.double() for G in rows(n, d)) / n
    V = V.double()
    return {
        "n": n,
        "d": d,
        "m": m,
        "space": "parameters" if isinstance(EXACT.times(V, 1.0, n), InParameters) else "samples",
        "seconds to make rows": making,
        "seconds for the inverse": solving - making,
        "seconds for scores": scoring - making,
        "operations of the inverse": EXACT.flops(n, m, d),
        "peak bytes": memory,
        "bytes by the plan": EXACT.bytes(n, m, d),
        "residual": float((HX + DAMPING * X - V).norm() / V.norm()),
    }


def in_process(n, d, m):
    """The same in a process of its own."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:  # spares it the imports
        return pool.submit(measured, n, d, m).result()


def table(found):
    """As the documentation has it."""
    yield "| n | d | space of the factor | inverse | scores | making rows | peak | residual |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in found:
        spans = (
            one[f"seconds {what}"] for what in ("for the inverse", "for scores", "to make rows")
        )
        times = " | ".join(f"{max(0.0, span):.2f} s" for span in spans)
        yield (
            f"| {one['n']:,} | {one['d']:,} | {one['space']} | {times} | "
            f"{one['peak bytes'] / 2**20:.1f} MiB | {one['residual']:.0e} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10**6, help="n, at most")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--out", default=Path(__file__).parent / "results" / "exact_size.json")
    asked = parser.parse_args()
    found = [in_process(n, d, asked.queries) for n, d in SIZES if n <= asked.most]
    told = {"torch": torch.__version__, "threads": 1, "chunk": CHUNK, "sizes": found}
    Path(asked.out).write_text(json.dumps(told, indent=1) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
