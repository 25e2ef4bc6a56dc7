"""Chunks that are links to themselves: neither there nor absent, and named as damaged."""

import numpy as np
import pytest

import small_runs
from commands import refused
from pydvl_datainf import InfluenceRun, StoreError


@pytest.mark.parametrize("key", ["scores/c/0/0", "train/c/0"])
def test_a_link_in_a_circle_is_a_damaged_chunk(tmp_path, key):
    store = tmp_path / "run.zarr"
    before = small_runs.run(store, rows="zarr").scores[...]
    (store / key).unlink()
    (store / key).symlink_to(store / key)
    name, told = key.partition("/")[0], f"1 missing or damaged chunks: {key}\\."
    with pytest.raises(StoreError, match=told):
        InfluenceRun(store).store.read(name)
    with pytest.raises(StoreError, match=told):
        InfluenceRun(store).check()
    assert key in refused("info", store, "--check")
    again = small_runs.run(store, rows="zarr")
    np.testing.assert_array_equal(again.scores[...], before)
    assert not (store / key).is_symlink()
    again.check()
