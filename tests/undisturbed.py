"""Runs that nothing stopped, and how a store is compared with theirs."""

from pydvl_datainf import compute_self_influence
from pydvl_datainf.batches import batch_length
from pydvl_datainf.influence.sample_rows import SampleRows
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
    for name in ("of", "with_losses"):
        original = getattr(SampleRows, name)

        def count(self, batch, *engine, original=original):
            counted.append(batch_length(batch))
            return original(self, batch, *engine)

        monkeypatch.setattr(SampleRows, name, count)
    return counted


def self_influence(done):
    return compute_self_influence(done, progress=False)
