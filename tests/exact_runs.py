"""Runs of more queries than training samples, and what the formulas say of them."""

from functools import cache

import dense
import method_runs
from method_runs import datainf, exact, loader, plain, scaled
from pydvl_datainf import run_influences
from small_runs import network, samples

N, M = 23, 30  # between the widths of the blocks, so that one is solved in either space
BLOCKS = {"0": ["0.weight", "0.bias"], "2": ["2.weight", "2.bias"]}
WIDTHS = {"0": 20, "2": 24}
# Bytes in which the queries take several groups.
TIGHT = {datainf: 25_000, exact: 70_000, plain: 25_000, scaled: 40_000}


def run(store, influence, test=None, train=None, **settings):
    settings = {"progress": False, "tile": (16, 12), **settings}
    test, train = test or loader(samples(M, 2), 7), train or loader(samples(N, 1), 5)
    return run_influences(influence, test, train, store, **settings)


@cache
def rows_of(length, seed):
    return method_runs.dense_rows(network(), BLOCKS, samples(length, seed))


def stored_rows(store):
    return method_runs.stored_rows(store, WIDTHS)


def truth(build, G=None, seed=2, length=M, damping=None):
    """Scores (m, blocks, n) and self-influences (n,), by the oracle."""
    computed = rows_of(N, 1)
    λ = damping or {b: dense.automatic_damping(g) for b, g in computed.items()}
    return method_runs.influences_by_block(build, rows_of(length, seed), G or computed, λ)


def true_scores(build, **settings):
    return truth(build, **settings)[0].sum(1)
