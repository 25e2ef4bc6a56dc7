"""How long each inverse takes on rows that are there: the algebra alone, on one thread.

python benchmarks/inverses.py [--samples 1000] [--queries 100] [--blocks 24] [--width 1536]
"""

import argparse
from collections import OrderedDict
from statistics import median
from time import process_time

import torch

from pydvl_datainf.inverse.method import solve
from pydvl_datainf.inverse.methods import DATAINF, EXACT, SCALED_HESSIAN_FREE

REPETITIONS = 5
BATCH = 32


def vectors(blocks, count, width):
    return OrderedDict((str(b), torch.randn(count, width)) for b in range(blocks))


def seconds(method, queries, chunks, n):
    damping = dict.fromkeys(queries, 0.1)  # the paper's rule for rows of standard normal numbers
    start = process_time()
    solve(method.times, queries, lambda: chunks, n, damping)
    return process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("samples", 1000), ("queries", 100), ("blocks", 24), ("width", 1536)):
        parser.add_argument(f"--{name}", type=int, default=default)
    size = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = [min(BATCH, size.samples - start) for start in range(0, size.samples, BATCH)]
    chunks = [vectors(size.blocks, length, size.width) for length in lengths]
    queries = vectors(size.blocks, size.queries, size.width)
    measured = {
        method.name: median(
            seconds(method, queries, chunks, size.samples) for _ in range(REPETITIONS)
        )
        for method in (DATAINF, EXACT, SCALED_HESSIAN_FREE)
    }
    for name, value in measured.items():
        print(f"{name:20} {value:8.3f} s   {value / measured[DATAINF.name]:6.2f} x DataInf")


if __name__ == "__main__":
    main()
