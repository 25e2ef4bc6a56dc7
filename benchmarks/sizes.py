"""What runs with compressed rows take on base models of 1, 7 and 70 billion parameters.

python benchmarks/sizes.py [--samples 50000] [--tokens 512]

Bytes and counts follow from the plan that a run would have, minutes from docs/sizing.md's formulae
and its assumed rates: nothing is run. Prints the tables of docs/sizing.md, in Markdown.
"""

import argparse
from dataclasses import dataclass
from itertools import product

from pydvl_datainf.errors import PlanError
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.runner.cutting import make_plan
from pydvl_datainf.runner.sizing import RunSize

LORA, QUERIES, BATCH = 8, 100, 8
RATE = 4e14  # operations a second that a GPU sustains, assumed
FLOAT64 = 3e13  # the same in float64, assumed
WRITTEN, READ, DISK = 0.6e9, 0.4e9, (3e9, 6e9)  # bytes a second of a process, and of the disk
KAPPA = 2.3  # cost of a batch's rows, in forward passes
GIB = 2**30


@dataclass(frozen=True)
class Base:
    """The proportions of a Llama.

    Attributes:
        name: as its makers write it.
        layers: of the decoder.
        hidden: numbers of a token.
        kv: width of keys and of values.
        inner: width of the feed-forward layer.
    """

    name: str
    layers: int
    hidden: int
    kv: int
    inner: int

    @property
    def multiplied(self):
        """P: weights that multiply each token."""
        attention = 2 * self.hidden * (self.hidden + self.kv)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def blocks(self):
        """Widths of the LoRA matrices on q and v."""
        sides = [self.hidden, self.hidden, self.hidden, self.kv]
        return [LORA * side for side in sides * self.layers]


BASES = [
    Base("TinyLlama 1.1B", 22, 2048, 256, 5632),
    Base("Llama 2 7B", 32, 4096, 4096, 11008),
    Base("Llama 2 70B", 80, 8192, 1024, 28672),
]


def size_of(base, rank, n):
    compression, widths = Compression(rank=rank), dict(enumerate(base.blocks))
    return RunSize(
        n=n,
        m=QUERIES,
        m_samples=QUERIES,
        widths=list(compression.widths(widths, n).values()),
        itemsize=4,
        longest=BATCH,
        method=METHODS["exact"],
        whole=base.blocks,
        bases=list(compression.shapes(widths, n).values()),
        basis_sample=len(compression.kept_whole(n)),
    )


def planned(size):
    """The plan in the least power of two of GiB that takes one, and that."""
    for gibibytes in (1, 2, 4, 8, 16, 32, 64, 128):
        try:
            return make_plan(size, memory=gibibytes * GIB, rows="zarr"), gibibytes
        except PlanError:
            continue
    raise SystemExit("No plan fits in 128 GiB.")


def minutes(base, size, plan: Plan, cards, tokens):
    """Of gradients, of what is stored, and of the inverse."""
    gradients = (size.n + QUERIES) * KAPPA * 2 * base.multiplied * tokens / (RATE * cards)
    stored = 2 * size.n * plan.n_parameters + 8 * len(plan.pieces) * QUERIES * size.n
    whole = 2 * size.basis_sample * sum(size.whole) * size.itemsize
    write, read = (min(cards * w, most) for w, most in zip((WRITTEN, READ), DISK, strict=True))
    disk = (stored + whole) * (1 / write + 1 / read)
    # Second moments of coordinates, vectors and scores; bases from the sample's rows.
    inverse = sum(2 * size.n * r * (r + 2 * QUERIES) + r**3 for r in size.widths)
    bases = sum(4 * size.basis_sample**2 * d + 2 * size.n * r * d for r, d in size.bases)
    return [t / 60 for t in (gradients, disk, (inverse + bases) / (FLOAT64 * cards))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    sizes = [
        (base, rank, size_of(base, rank, args.samples)) for base, rank in product(BASES, (64, 256))
    ]
    print("| base, rank | P | D | a sample: whole, kept | rows | bases | sample | `memory=` |")
    print("|---" * 8 + "|")
    for base, rank, size in sizes:
        plan, memory = planned(size)
        whole, kept = 2 * sum(base.blocks) / 1e6, 2 * plan.n_parameters / 1e3
        bases = sum(r * d for r, d in size.bases) * 4 / 1e9
        waiting = size.basis_sample * sum(size.whole) * 4 / 1e9
        print(
            f"| {base.name}, {rank} | {base.multiplied / 1e9:.2f}e9 | {sum(base.blocks):,} | "
            f"{whole:.1f} MB, {kept:.0f} kB | {size.n * kept / 1e6:.1f} GB | {bases:.1f} GB | "
            f"{waiting:.1f} GB | {memory} GiB |"
        )
    print("\n| base, rank | one card: gradients | disk | inverse | all | eight cards: all |")
    print("|---" * 6 + "|")
    for base, rank, size in sizes:
        plan, _ = planned(size)
        one, eight = (minutes(base, size, plan, cards, args.tokens) for cards in (1, 8))
        row = [*one, sum(one), sum(eight)]
        print(f"| {base.name}, {rank} | " + " | ".join(f"{t:.1f}" for t in row) + " |")


if __name__ == "__main__":
    main()
