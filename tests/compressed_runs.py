"""Runs with compressed rows, of a model whose blocks are partly narrower than the rank.

And what holds of all compressed runs that are stopped, damaged, or done by another machine.
"""

import shutil

import pytest

import method_runs
import piece_runs
from damaged_runs import rewritten
from method_runs import datainf, results, stopped
from piece_runs import M
from pydvl_datainf import StoreError
from pydvl_datainf.results.reader import InfluenceRun
from small_runs import samples

RANK, SAMPLE = 20, 21
# So little memory that even these rows are worth several pieces.
ASKED = {"rows": "compressed", "rank": RANK, "basis_sample": SAMPLE, "memory": "512KiB"}


def loader(m):
    return method_runs.loader(samples(m, 2), 3)


def run(store, build=datainf, m=M, **settings):
    return piece_runs.run(store, build, **{"test": loader(m), **ASKED, **settings})


def assert_goes_on(monkeypatch, stop, run, store, whole):
    """A run that is stopped in a call of a task ends as the whole one, and computes as much."""
    with stopped(monkeypatch, *stop):
        run(store)
    done = run(store)
    assert results(store) == results(whole)
    assert done.attrs["gradients"] == InfluenceRun(whole).attrs["gradients"]
    return done


def assert_repaired(store, array, run, whole):
    """Damage of an array is named, and made again with the same bits."""
    with pytest.raises(StoreError, match=array):
        InfluenceRun(store).check()
    run(store)
    assert results(store) == results(whole)
    InfluenceRun(store).check()


def assert_refused(whole, place, compression):
    """A record that says this of the compression is no run's."""
    store = shutil.copytree(whole, place)
    rewritten(store, {"fingerprint.compression": compression})
    with pytest.raises(StoreError, match="compression is "):
        InfluenceRun(store)


def told(store):
    """What the record says of the compression."""
    return InfluenceRun(store).attrs["fingerprint"]["compression"]


def run_elsewhere(monkeypatch, learning_otherwise, run, store):
    """Has a run go on where what is learned is another."""
    with monkeypatch.context() as patch:
        learning_otherwise(patch)
        return run(store)
