"""Metadata that are damaged: an error that names them, never other values, and their repair."""

import random
from functools import partial

import numpy as np
import pytest
import zarr

from commands import invoke, refused
from damaged_runs import KINDS, outcome, put, values
from pydvl_datainf import StoreError
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import TIGHT, Interrupt, N, chunks, run
from undisturbed import assert_same

OWN = ["approximation", "block", "damping", "mean_influence", "row_scales", "rows/0"]
OWN += ["scores", "self_influence", "squared_norms", "test", "test_flag", "train", "train_label"]
OWN += ["train_loss", "training_loss", "width"]
ARRAYS = [("zarr", name) for name in OWN] + [("top", name) for name in ("top", "top_scores", "end")]
FLIPS = 8


def names_it(error, name):
    return isinstance(error, StoreError) and f"'{name}'" in str(error)


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def some_bits(content, seed, count=FLIPS):
    return random.Random(seed).sample(range(8 * len(content)), count)


def assert_all_same(store, expected):
    """With the metadata of arrays."""
    assert_same(store, expected)
    for file in expected.glob("*/**/zarr.json"):
        assert (store / file.relative_to(expected)).read_bytes() == file.read_bytes()


# The metadata of arrays


def test_premise_these_are_all_arrays(whole):
    for kind in KINDS:
        assert arrays_in(whole / kind) >= {name for of, name in ARRAYS if of == kind}
    assert arrays_in(whole / "zarr") == set(OWN)


def arrays_in(store):
    members = zarr.open_group(store, mode="r").members(None)
    return {name for name, member in members if isinstance(member, zarr.Array)}


DAMAGES = {
    "deleted": lambda content: None,
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "another kind": lambda content: content.replace(b'"array"', b'"group"'),
    "another separator": lambda content: content.replace(b'"/"', b'"."'),
    "another data type": lambda content: content.replace(b'"data_type": "', b'"data_type": "x'),
    "without codecs": lambda content: content.replace(b'"crc32c"', b'"crc32d"'),
    "a list": lambda content: b"[1, 2]",
    "deep": lambda content: b"[" * 100_000,
    "no text": lambda content: b"\xff\xfe\x00",
}


@pytest.mark.parametrize(("kind", "name"), ARRAYS)
def test_damaged_metadata_of_an_array_are_refused_by_its_name(copied, kind, name):
    store = copied(kind)
    file = store / name / "zarr.json"
    content = file.read_bytes()
    for damage in DAMAGES.values():
        put(file, damage(content))
        assert not file.exists() or file.read_bytes() != content  # the premise
        with pytest.raises(StoreError, match=f"'{name}'.* same arguments"):
            InfluenceRun(store).check()
        file.write_bytes(content)
    InfluenceRun(store).check()


@pytest.mark.parametrize(("kind", "name"), ARRAYS)
def test_a_flipped_bit_is_refused_or_changes_nothing(copied, right, kind, name):
    store = copied(kind)
    file = store / name / "zarr.json"
    content = file.read_bytes()
    refusals = 0
    for bit in some_bits(content, name):
        file.write_bytes(flipped(content, bit))
        found = outcome(values, store)
        assert found == right[kind] or names_it(found, name), (bit, found)
        refusals += found != right[kind]
    assert refusals >= FLIPS / 4  # much of the file is blanks


@pytest.mark.parametrize(("kind", "damage"), [("zarr", "deleted"), ("zarr", "cut"), ("top", "cut")])
def test_the_same_call_makes_damaged_metadata_again(copied, whole, right, kind, damage):
    store = copied(kind)
    for name in (name for of, name in ARRAYS if of == kind):
        put(store / name / "zarr.json", DAMAGES[damage]((store / name / "zarr.json").read_bytes()))
    run(store, **KINDS[kind])
    assert_all_same(store, whole / kind)
    assert values(store) == right[kind]


@pytest.mark.parametrize(("kind", "name"), [*ARRAYS[::5], ("top", "top")])
def test_the_same_call_makes_the_metadata_of_one_array_again(copied, whole, right, kind, name):
    store = copied(kind)
    file = store / name / "zarr.json"
    put(file, DAMAGES["another separator"](file.read_bytes()))
    run(store, **KINDS[kind])
    assert_all_same(store, whole / kind)
    assert values(store) == right[kind]


def test_chunks_that_are_sound_are_kept(copied, whole):
    store = copied("zarr")
    (store / "scores/zarr.json").write_text("{")
    before = {name: (store / name).stat().st_mtime_ns for name in chunks(store)}
    run(store, **KINDS["zarr"])
    assert {name: (store / name).stat().st_mtime_ns for name in chunks(store)} == before
    attributes = [InfluenceRun(place).attrs for place in (store, whole / "zarr")]
    assert attributes[0] == attributes[1]  # nothing was computed


@pytest.mark.parametrize("name", ["scores", "train_label", "approximation", "self_influence"])
def test_commands_name_the_array_whose_metadata_are_damaged(copied, tmp_path, name):
    store = copied("zarr")
    for damage in ("deleted", "another data type"):
        file = store / name / "zarr.json"
        put(file, DAMAGES[damage](file.read_bytes()))
        for command in (["info"], ["info", "--check"]):
            assert f"'{name}'" in refused(*command, store)
        page = invoke("report", store, "-o", tmp_path / "page.html")
        assert page.exit_code == 1
        assert f"'{name}'" in page.stderr
        file.write_bytes(b"{}")
    for name in ("mean_influence", "train"):
        (store / name / "zarr.json").write_text("{}")
        assert "zarr.json" not in refused("top", store)


def test_consolidated_metadata_that_say_something_else_are_found_and_made_again(copied, whole):
    store = copied("zarr")
    content = (whole / "zarr/zarr.json").read_bytes()
    start = content.index(b'"consolidated_metadata"')
    damaged = content[:start] + content[start:].replace(b'"level": 1', b'"level": 3')
    (store / "zarr.json").write_bytes(damaged)
    with pytest.raises(StoreError, match=r"consolidated metadata .*'block', .* same arguments"):
        InfluenceRun(store).check()
    run(store, **KINDS["zarr"])
    assert (store / "zarr.json").read_bytes() == content


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_damaged_metadata_of_the_group_of_rows_hide_no_rows(copied, whole, right, damage):
    store = copied("zarr")
    file = store / "rows/zarr.json"
    put(file, DAMAGES[damage](file.read_bytes()))
    assert values(store) == right["zarr"]
    run(store, **KINDS["zarr"])
    assert values(store) == right["zarr"]


# The group itself


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut", "a list", "deep", "no text"])
def test_a_damaged_group_is_refused_with_a_remedy(copied, damage):
    store = copied("top")
    file = store / "zarr.json"
    put(file, DAMAGES[damage](file.read_bytes()))
    error = outcome(values, store)
    assert isinstance(error, StoreError)
    assert "run.zarr" in str(error)
    again = outcome(partial(run, store, **KINDS["top"]))
    assert isinstance(again, StoreError)
    assert "by hand" in str(again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_the_group_is_refused_or_changes_nothing(copied, whole, right, kind):
    store = copied(kind)
    content = (store / "zarr.json").read_bytes()
    end = content.index(b'"consolidated_metadata"')
    refusals = 0  # a flip in a number of seconds, for one, is none
    for bit in some_bits(content[:end], kind, 3 * FLIPS):
        (store / "zarr.json").write_bytes(flipped(content, bit))
        found = outcome(values, store)
        assert found == right[kind] or isinstance(found, StoreError), (bit, found)
        refusals += found != right[kind]
    assert refusals >= FLIPS


@pytest.mark.parametrize("seed", range(4))
def test_the_same_call_with_a_flipped_bit_in_the_group_refuses_or_changes_nothing(
    copied, whole, right, seed
):
    store = copied("top")
    content = (store / "zarr.json").read_bytes()
    (bit,) = some_bits(content, seed, 1)
    (store / "zarr.json").write_bytes(flipped(content, bit))
    again = outcome(partial(run, store, **KINDS["top"]))
    assert isinstance(again, StoreError | InfluenceRun), again
    assert [
        n for n in chunks(store) if (store / n).read_bytes() != (whole / "top" / n).read_bytes()
    ] == []


def test_damaged_metadata_of_intermediate_results_are_made_again(tmp_path):
    run(tmp_path / "whole.zarr", memory=TIGHT["recompute"])
    store = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        run(store, Interrupt(50), memory=TIGHT["recompute"])
    files = list(store.glob("work/**/zarr.json"))
    assert len(files) >= 2  # the premise
    for i, file in enumerate(files):
        put(file, [b"{", None][i % 2])
    run(store, memory=TIGHT["recompute"])
    assert_all_same(store, tmp_path / "whole.zarr")
    assert not (store / "work").exists()


@pytest.mark.parametrize("name", ["scores", "train"])
def test_other_readers_are_not_handed_damaged_metadata(copied, name):
    store = copied("zarr")
    (store / name / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=f"'{name}'"):
        InfluenceRun(store).to_xarray()


@pytest.mark.parametrize("part", ["fingerprint", "plan", "columns"])
def test_what_was_computed_has_a_checksum(copied, right, part):
    store = copied("zarr")
    content = (store / "zarr.json").read_text()
    old = {"fingerprint": "0.1 of mean", "plan": '"self_tiles": ', "columns": '"train_label"'}[part]
    new = {"fingerprint": "0.2 of mean", "plan": '"self_tiles": 1', "columns": '"train_lapel"'}[
        part
    ]
    assert old in content  # the premise
    (store / "zarr.json").write_text(content.replace(old, new))
    with pytest.raises(StoreError, match=r"columns are not as they were written.* overwrite=True"):
        InfluenceRun(store)
    with pytest.raises(StoreError, match=r"columns are not as they were written.* overwrite=True"):
        run(store, **KINDS["zarr"])
    run(store, **KINDS["zarr"], overwrite=True)
    assert values(store) == right["zarr"]


def test_the_same_ids_in_another_type_are_the_same_run(tmp_path):
    ids = {"train": np.arange(N, dtype=np.int32)}
    run(tmp_path / "run.zarr", ids=ids, top_k=3)
    before = (tmp_path / "run.zarr/train/zarr.json").read_bytes()
    again = run(tmp_path / "run.zarr", ids={"train": np.arange(N)}, top_k=3)
    again.check()
    assert again.train_ids.tolist() == list(range(N))
    assert (tmp_path / "run.zarr/train/zarr.json").read_bytes() == before
