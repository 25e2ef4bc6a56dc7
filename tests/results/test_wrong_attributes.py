"""Attributes that no run has: an error that names them."""

import re

import pytest

from commands import refused
from damaged_runs import KINDS, rewritten
from pydvl_datainf import StoreError
from stopped_run import run

WRONG = [
    ("plan", "a text"),
    ("fingerprint", []),
    ("seconds", None),
    ("seconds", {"scores": "long"}),
    ("seconds", {"scores": float("nan")}),
    ("complete", "yes"),
    ("gradients", -1),
    ("gradients", True),
    ("versions", ["zarr"]),
    ("created", 2026),
    ("method", {}),
    ("rows_in", 3),
    ("columns", {"train": "int64"}),
    ("columns", {"train": "int64", "test": "int64", "train_../x": "int64"}),
    ("columns", {"train": "int64", "test": "complex128"}),
    ("columns", {"train": "int64", "test": ["string"]}),
    ("extras", ["scores"]),
    ("checksum", 12),
    ("fingerprint.method", "magic"),
    ("fingerprint.method", ["DataInf"]),
    ("fingerprint.dtype", "float128"),
    ("fingerprint.dtype", {}),
    ("fingerprint.blocks", {}),
    ("fingerprint.blocks", {"layers.0": "weight"}),
    ("fingerprint.top_k", 0),
    ("fingerprint.top_k", "3"),
    ("fingerprint.by_block", 1),
    ("fingerprint.query groups", 7),
    ("fingerprint.run metadata", "none"),
    ("fingerprint.test samples", 2**60),
    ("plan.n", 23.0),
    ("plan.n", True),
    ("plan.m", 0),
    ("plan.train_tile", -6),
    ("plan.train_tile", 24),
    ("plan.columns", 10**9),
    ("plan.rows", "cloud"),
    ("plan.rows", []),
    ("plan.pieces", []),
    ("plan.pieces", [[1, 20]]),
    ("plan.pieces", [[2, 43]]),
    ("plan.pieces", [[2, 44], [0, 0]]),
    ("plan.pieces", [[1, 20], [1.0, 24]]),
    ("plan.pieces", [[3, 20], [-1, 24]]),
    ("plan.pieces", [[2, 44, 1]]),
    ("plan.pieces", 44),
    ("plan.pieces", [2, 44]),
]


def assert_refused(store, match):
    for command in ("info", "top"):
        assert re.search(match, " ".join(refused(command, store).split()))
    with pytest.raises(StoreError, match=match):
        run(store, **KINDS["zarr"])


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_attributes_that_no_run_has_are_refused_by_name(copied, name, value):
    store = copied("zarr")
    rewritten(store, {name: value})
    assert_refused(store, rf"attributes of .*run\.zarr.*{name.rpartition('.')[2]}.*zarr\.json")


@pytest.mark.parametrize(
    "name", ["seconds", "complete", "plan", "versions", "rows_in", "columns", "checksum"]
)
def test_attributes_that_are_missing_are_refused_by_name(copied, name):
    store = copied("zarr")
    rewritten(store, {}, without=[name])
    assert_refused(store, f"{name} is missing")


@pytest.mark.parametrize("version", [1, 3])
def test_a_version_is_refused_whatever_wrote_it(copied, version):
    store = copied("zarr")
    rewritten(store, {"format_version": version, "versions": []})
    assert f"format version {version}" in refused("info", store)
