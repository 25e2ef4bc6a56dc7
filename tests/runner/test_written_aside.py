"""Tiles of rows that are written while the next ones are encoded."""

from threading import Event

import pytest

from piece_runs import PIECES, TILES, run
from pydvl_datainf import StoreError
from pydvl_datainf.runner.tasks import Context, gradients

PATIENCE = 20  # seconds, which are waited for nothing where tiles are not written aside


@pytest.fixture
def slow(monkeypatch):
    """No tile but the last of the four of a task is written before the next one is encoded."""
    encoded = [Event() for _ in range(TILES)]
    waited = []
    encode, write = gradients._Encoder.write, gradients._Encoder._write

    def told(encoder, tile):
        encoded[tile].set()
        encode(encoder, tile)

    def patient(encoder, tile, made):
        waited.append(tile == TILES - 1 or encoded[tile + 1].wait(PATIENCE))
        write(encoder, tile, made)

    monkeypatch.setattr(gradients._Encoder, "write", told)
    monkeypatch.setattr(gradients._Encoder, "_write", patient)
    return waited


def files_of_rows(store):
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("rows/*/c/*/0")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    store = tmp_path_factory.mktemp("sound") / "run.zarr"
    done = run(store)
    assert len(done.plan.train) == TILES  # the premise: of one task
    return files_of_rows(store)


def test_a_tile_is_written_while_the_next_one_is_encoded(tmp_path, slow, sound):
    run(tmp_path / "run.zarr")
    assert slow == [True] * TILES
    assert len(sound) == TILES * len(PIECES)
    assert files_of_rows(tmp_path / "run.zarr") == sound


def test_control_in_one_memory_the_next_tile_would_overwrite_it(tmp_path, slow, sound, monkeypatch):
    memory = Context.memory

    def same(context, what, *arguments):
        return memory(context, what.replace("tile 1", "tile 0"), *arguments)

    monkeypatch.setattr(Context, "memory", same)
    run(tmp_path / "run.zarr")
    assert files_of_rows(tmp_path / "run.zarr") != sound


@pytest.mark.parametrize("failing", [1, TILES - 1])
def test_after_a_tile_that_cannot_be_written_none_is(tmp_path, monkeypatch, sound, failing):
    write, begun = gradients._Encoder._write, []

    def fails(encoder, tile, made):
        begun.append(tile)
        if tile == failing:
            raise StoreError("full")
        write(encoder, tile, made)

    with monkeypatch.context() as patch:
        patch.setattr(gradients._Encoder, "_write", fails)
        with pytest.raises(StoreError, match="full"):
            run(tmp_path / "run.zarr")
    assert begun == list(range(failing + 1))
    there = files_of_rows(tmp_path / "run.zarr")
    assert len(there) == failing * len(PIECES)
    assert there.items() <= sound.items()
    run(tmp_path / "run.zarr")
    assert files_of_rows(tmp_path / "run.zarr") == sound
