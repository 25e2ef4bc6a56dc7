"""Runs that nothing stopped, and how a store is compared with theirs."""

from pydvl_datainf import DataInfInfluence, compute_self_influence
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import N, build, chunks

CUT = {"tile": (6, 12)}
SETTINGS = {
    "zarr": {"rows": "zarr", "ids": {"train": [f"sample {i}" for i in range(N)]}, **CUT},
    "top": {"top_k": 4, **CUT},
    "recompute": CUT,
}


def other_model():
    influence = build()
    influence.model.layers[2].bias.data[0] += 1
    return influence


OTHER = {"influence": other_model()}  # another run, with arrays of the same shapes


def assert_same(store, expected):
    """A complete and sound run, whose chunks are the same bit for bit."""
    InfluenceRun(store).check()
    names = chunks(expected)
    assert chunks(store) == names
    assert [n for n in names if (store / n).read_bytes() != (expected / n).read_bytes()] == []


def gradients(store):
    return InfluenceRun(store).attrs["gradients"]


def count_gradients(monkeypatch):
    """The sizes of the batches whose gradients are computed from now on."""
    counted = []
    for name in ("loss_gradients_by_block", "gradients_with_losses_by_block"):
        original = getattr(DataInfInfluence, name)

        def count(self, x, y=None, original=original):
            counted.append(len(x))
            return original(self, x, y)

        monkeypatch.setattr(DataInfInfluence, name, count)
    return counted


def self_influence(done):
    return compute_self_influence(done, progress=False)
