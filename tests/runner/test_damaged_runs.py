"""Chunks and metadata that are damaged: an error that names them, and their repair."""

import shutil
from pathlib import Path

import pytest

import small_runs
from damage import empty, flip_a_byte, truncate
from pydvl_datainf import StoreError
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import M, N, chunks, run
from undisturbed import SETTINGS, assert_same, gradients, self_influence

DAMAGES = [flip_a_byte, truncate, empty, Path.unlink]
# Of which run, which chunk, how it is read, and how many gradients its repair takes.
DAMAGED = [
    ("recompute", "scores/c/1/0", lambda done: done.top(2), M + N + 12),
    ("recompute", "squared_norms/c/1/0", InfluenceRun.check, 11),
    ("zarr", "scores/c/0/1", lambda done: done.top(2), M),  # gradients of all queries
    ("zarr", "squared_norms/c/0/0", InfluenceRun.check, 12),
    ("zarr", "mean_influence/c/1", InfluenceRun.mean_influence, 0),
    ("zarr", "rows/0/c/1/0", self_influence, 11),
    ("zarr", "row_scales/c/0/0", self_influence, 12),
    ("zarr", "damping/c/0", lambda done: done.damping, 0),
    ("zarr", "block/c/0", lambda done: done.damping, 0),
    ("zarr", "train/c/0", lambda done: done.top(2), 0),
    ("zarr", "test/c/0", lambda done: done.top(2, test=0), 0),
    ("top", "top/c/1/0/0", lambda done: done.top(2), M + 2 * N),
    ("top", "top_scores/c/0/0/0", lambda done: done.top(2), M + 2 * N),
    ("top", "mean_influence/c/1", InfluenceRun.mean_influence, M + N + 11),
]
# Two damages of each chunk, and each damage in every kind of run and of array.
CASES = [
    pytest.param(*case, damage, id=f"{case[0]} {case[1]} {damage.__name__}")
    for i, case in enumerate(DAMAGED)
    for damage in (DAMAGES[i % 4], DAMAGES[(i + 1 + i // 4 % 3) % 4])
]


@pytest.mark.parametrize(("kind", "key", "read", "repair", "damage"), CASES)
def test_damage_is_found_and_repaired(tmp_path, sound, kind, key, read, repair, damage):
    store = shutil.copytree(sound / kind, tmp_path / "run.zarr")
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    damage(store / key)
    for reading in (read, InfluenceRun.check):
        with pytest.raises(StoreError, match=f"{key}(?![/0-9])"):
            reading(InfluenceRun(store))
    run(store, **SETTINGS[kind])
    assert_same(store, sound / kind)
    assert gradients(store) == gradients(sound / kind) + repair
    # All scores of a piece of blocks come together, and rows with what is known of them.
    together = ("rows", "row_scales", "squared_norms", "top", "top_scores")
    with_it = key.split("/")[0] in together + (("scores",) if kind == "zarr" else ())
    for path in {store / name for name in chunks(store)} - {store / key}:
        assert with_it or path.stat().st_mtime_ns == before[path]


@pytest.mark.parametrize("rows", small_runs.ROWS)
def test_scores_of_one_query_have_the_bits_that_they_had_beside_others(tmp_path, rows):
    """Although torch multiplies one vector by another routine than several."""
    settings = {"rows": rows, "tile": (1, 6)}
    small_runs.run(tmp_path / "sound.zarr", **settings)
    store = shutil.copytree(tmp_path / "sound.zarr", tmp_path / "run.zarr")
    for key in ("scores/c/2/0", "scores/c/5/1", "scores/c/3/1"):
        (store / key).unlink()
    small_runs.run(store, **settings)
    assert_same(store, tmp_path / "sound.zarr")


def test_premise_a_sound_run_is_read_without_complaint(tmp_path, sound):
    shutil.copytree(sound, tmp_path / "sound")
    for kind, _, read, _ in DAMAGED:
        read(InfluenceRun(tmp_path / "sound" / kind))
        InfluenceRun(tmp_path / "sound" / kind).check()


@pytest.mark.parametrize("damage", [empty, Path.unlink])
@pytest.mark.parametrize("file", ["zarr.json", "scores/zarr.json"])
def test_damaged_metadata_are_an_error_that_names_the_store(tmp_path, plain, file, damage):
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    damage(store / file)
    with pytest.raises(StoreError, match=r"run\.zarr"):
        InfluenceRun(store).check()


@pytest.mark.parametrize("file", ["scores/zarr.json", "rows/0/zarr.json", "train/zarr.json"])
def test_deleted_metadata_of_an_array_are_made_again(tmp_path, sound, file):
    store = shutil.copytree(sound / "zarr", tmp_path / "run.zarr")
    (store / file).unlink()
    run(store, **SETTINGS["zarr"])
    assert_same(store, sound / "zarr")
    assert (store / file).read_bytes() == (sound / "zarr" / file).read_bytes()
