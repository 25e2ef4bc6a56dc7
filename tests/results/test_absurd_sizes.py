"""Arrays and chunks that say that they are enormous: refused before anybody waits for them."""

import json
import re

import google_crc32c
import pytest
import zarr
from numcodecs import Zstd
from zarr.storage import LocalStore

from commands import invoke, refused
from damaged_runs import rewritten
from pydvl_datainf import StoreError
from pydvl_datainf.results.chunks import ChunkGuard, expanded_size
from pydvl_datainf.results.layout import arrays_said
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import N

# Sizes

ABSURD = {
    "many samples": {"plan.n": 10**15, "fingerprint.training samples": 10**15},
    "many queries": {"plan.m": 10**15, "fingerprint.test samples": 10**15},
    "small chunks": {
        "plan.n": 10**6,
        "plan.m": 10**6,
        "fingerprint.training samples": 10**6,
        "fingerprint.test samples": 10**6,
        "plan.test_tile": 1,
        "plan.train_tile": 1,
    },
    "one large chunk": {
        "plan.n": 4 * 10**8,
        "plan.train_tile": 4 * 10**8,
        "fingerprint.training samples": 4 * 10**8,
    },
    "many parameters": {"plan.n_parameters": 10**15, "plan.pieces": [[2, 10**15]]},
}


@pytest.fixture
def absurd(copied):
    """A store whose attributes and arrays agree on what nobody could store."""

    def make(changes):
        store = copied("zarr")
        attributes = rewritten(store, changes)
        for name, layout in arrays_said(attributes).items():
            (store / name / "zarr.json").unlink(missing_ok=True)
            zarr.create_array(store, zarr_format=3, **layout.settings(name))
        return store

    return make


def test_premise_the_same_sizes_make_the_same_store(absurd, whole, right):
    store = absurd({})
    for file in store.glob("*/**/zarr.json"):
        own, theirs = (
            json.loads(f.read_text()) for f in (file, whole / "zarr" / file.relative_to(store))
        )
        assert {**own, "attributes": {}} == {**theirs, "attributes": {}}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_keep_nobody_waiting(absurd, case, tmp_path):
    store = absurd(ABSURD[case])
    with pytest.raises(
        StoreError, match=r"missing or damaged chunks: (.* more|rows/0/c)|'approximation'"
    ):
        InfluenceRun(store).check()
    for command in (
        ["info"],
        ["top"],
        ["top", "--test", "0"],
        ["report", "-o", tmp_path / "page.html"],
    ):
        result = invoke(*command, store)
        assert isinstance(result.exception, SystemExit | None), result.exception
        # What is there of the means is there; the rest is missing by its name.
        assert result.exit_code == 0 or re.search(
            r"missing or damaged|'approximation'", result.stderr
        )


@pytest.mark.timeout(60)
def test_arrays_with_other_sizes_than_those_of_their_run_are_refused_by_name(copied):
    store = copied("zarr")
    for name, size in (("scores", 10**6), ("mean_influence", 10**15), ("train", 10**15)):
        file = store / name / "zarr.json"
        before, content = (json.loads(file.read_text()) for _ in range(2))
        content["shape"] = [size] * len(content["shape"])
        content["chunk_grid"]["configuration"]["chunk_shape"] = [1] * len(content["shape"])
        file.write_text(json.dumps(content))
        with pytest.raises(StoreError, match=f"'{name}'.*not laid out as its run says"):
            InfluenceRun(store).check()
        assert f"'{name}'" in refused("info", store)
        file.write_text(json.dumps(before))


# Chunks that expand


def with_size(frame, size):
    """A zstd frame that says that it expands to so many bytes."""
    return frame[:4] + bytes([0b11100000]) + size.to_bytes(8, "little") + frame[6:]


def checked(frame):
    return frame + google_crc32c.value(frame).to_bytes(4, "little")


def test_premise_the_size_in_a_frame_is_that_of_its_content():
    for length in (0, 1, 255, 256, 65_791, 65_792, 10**6):
        assert expanded_size(bytes(Zstd(1).encode(bytes(length)))[:18]) == length
    assert expanded_size(with_size(bytes(Zstd(1).encode(b"abc")), 2**40)[:18]) == 2**40
    assert expanded_size(b"no frame at all") is None


@pytest.mark.parametrize("size", [2**31 + 8, 2**50])
@pytest.mark.parametrize("key", ["mean_influence/c/0", "scores/c/0/0", "train_label/c/0"])
def test_a_chunk_that_expands_beyond_its_size_is_refused_before_it_does(copied, key, size):
    store = copied("zarr")
    (store / key).write_bytes(checked(with_size(bytes(Zstd(1).encode(bytes(64))), size)))
    with pytest.raises(StoreError, match=key):
        InfluenceRun(store).check()
    array = zarr.open_array(ChunkGuard(LocalStore(store), None), path=key.split("/c/")[0], mode="r")
    with pytest.raises(ValueError, match=f"would expand to {size:,}"):
        array[...]


def test_a_small_chunk_that_fills_the_memory_is_refused(copied, absurd):
    store = absurd(ABSURD["one large chunk"])
    frame = checked(with_size(bytes(Zstd(1).encode(bytes(64))), 8 * 4 * 10**8))
    (store / "mean_influence/c/0").write_bytes(frame)
    with pytest.raises(StoreError, match="mean_influence/c/0") as caught:
        InfluenceRun(store).mean_influence()
    assert "would expand to 3,200,000,000" in str(caught.value.__cause__)


def test_positions_that_there_are_not_are_refused(copied):
    store = copied("top")
    zarr.open_array(store, path="top", mode="r+")[0, 0, 0] = N
    with pytest.raises(StoreError, match=r"'top'.*positions"):
        InfluenceRun(store).top(3)
