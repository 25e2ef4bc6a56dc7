"""Runs with compressed rows, of a model whose blocks are partly narrower than the rank."""

import method_runs
import piece_runs
from method_runs import datainf
from piece_runs import M
from small_runs import samples

RANK, SAMPLE = 20, 21
# So little memory that even these rows are worth several pieces.
ASKED = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "memory": "512KiB"}


def loader(m):
    return method_runs.loader(samples(m, 2), 3)


def run(store, build=datainf, m=M, **settings):
    return piece_runs.run(store, build, **{"test": loader(m), **ASKED, **settings})
