"""Chunks that go straight between files and memory, beside what Zarr makes of the same files."""

import errno
import os
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from pydvl_datainf import StoreError
from pydvl_datainf.results.chunk_files import is_plain
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import Stored
from store_contract import DAMAGES

N, WIDTH, LENGTH = 7, 5, 3  # three chunks, of which the last one has one row
NAME, OTHER = "rows/0", "row_scales"
VALUES = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float16)
CHUNKS = [slice(0, 3), slice(3, 6), slice(6, 7)]


def made(place, name=NAME, dtype="float16"):
    store = Store(place)
    store.create({"writer": "first"})
    store.require(name, (N, WIDTH), (LENGTH, WIDTH), dtype, ("train", "parameter"))
    return store


def files(store, name=NAME):
    found = sorted(Path(str(store), name, "c").rglob("*"))
    return {str(file): file.read_bytes() for file in found if file.is_file()}


def damaged(file, damage):
    content = file.read_bytes()
    file.unlink()
    for change in [DAMAGES[name] for name in DAMAGES if name == damage]:
        file.write_bytes(change(content))


@pytest.fixture
def store(tmp_path):
    """Its rows were written by Zarr alone."""
    store = made(tmp_path / "run.zarr")
    store.array(NAME)[...] = VALUES
    return store


@contextmanager
def without_zarr(monkeypatch):
    """Zarr neither reads nor writes chunks meanwhile."""
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__getitem__", None)
        patch.setattr(zarr.Array, "__setitem__", None)
        yield


def test_files_are_those_that_zarr_writes(store, tmp_path, monkeypatch):
    other = made(tmp_path / "other.zarr")
    with without_zarr(monkeypatch):
        for rows in CHUNKS:
            other.write(NAME, rows, VALUES[rows])
    assert len(files(other)) == len(CHUNKS)
    assert list(files(other).values()) == list(files(store).values())


@pytest.mark.parametrize("start", range(N))
def test_rows_are_those_that_zarr_wrote(store, monkeypatch, start):
    for stop in range(start + 1, N + 1):
        memory = np.full((stop - start, WIDTH), np.nan, np.float16)
        with without_zarr(monkeypatch):
            found = Stored(store.location).read_into(memory, NAME, slice(start, stop))
            read = Stored(store.location).read(NAME, slice(start, stop))
        assert found is memory
        np.testing.assert_array_equal(memory, VALUES[start:stop])
        np.testing.assert_array_equal(read, VALUES[start:stop])


@pytest.mark.parametrize(
    "where",
    [
        slice(None, None, 2),
        slice(-2, None),
        slice(5, 2),
        (slice(1, 5), slice(None, None, 2)),
        (slice(1, 5), slice(1, None)),
        (slice(1, 5), 2),
        2,
    ],
)
def test_other_selections_are_those_of_zarr(store, where):
    found = Stored(store.location).read(NAME, where)
    np.testing.assert_array_equal(found, store.array(NAME)[where])


@pytest.mark.parametrize("length", [LENGTH, N], ids=["chunks", "one_chunk"])
@pytest.mark.parametrize("step", [2, 3])
def test_steps_are_taken_within_a_chunk_too(tmp_path, length, step):
    store = Store(tmp_path / "steps.zarr")
    store.create({"writer": "first"})
    store.require(NAME, (N, WIDTH), (length, WIDTH), "float16", None)
    store.write(NAME, ..., VALUES)
    for rows in (slice(0, length, step), slice(1, None, step)):
        np.testing.assert_array_equal(store.read(NAME, rows), VALUES[rows])
        where = slice(0, length), slice(0, None, step)
        np.testing.assert_array_equal(store.read(NAME, where), VALUES[where])


@pytest.mark.parametrize("row", [6, -1])
def test_a_row_of_a_missing_chunk_is_missing(store, row):
    Path(str(store), NAME, "c", "2", "0").unlink()
    with pytest.raises(StoreError, match=rf"missing or damaged chunks: {NAME}/c/2/0"):
        store.read(NAME, row)


@pytest.mark.parametrize("row", [N, -N - 1])
def test_rows_beyond_the_end_are_refused(store, row):
    with pytest.raises(IndexError):
        store.read(NAME, row)


@pytest.mark.parametrize("damage", [*DAMAGES, "removed"])
@pytest.mark.parametrize("chunk", range(3))
def test_damage_is_named(store, chunk, damage):
    damaged(Path(str(store), NAME, "c", str(chunk), "0"), damage)
    memory = np.empty((N, WIDTH), np.float16)
    with pytest.raises(StoreError, match=rf"1 missing or damaged chunks: {NAME}/c/{chunk}/0\."):
        store.read_into(memory, NAME, slice(0, N))
    others = [rows for j, rows in enumerate(CHUNKS) if j != chunk]
    for rows in others:
        store.read_into(memory[rows], NAME, rows)
        np.testing.assert_array_equal(memory[rows], VALUES[rows])


def test_every_flipped_bit_of_a_chunk_is_noticed(store):
    file = Path(str(store), NAME, "c", "2", "0")
    content, memory = file.read_bytes(), np.empty((1, WIDTH), np.float16)
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(StoreError, match="missing or damaged"):
            store.read_into(memory, NAME, CHUNKS[2])


# Chunks of any shape

PARTS = "work/parts"
SHAPE, SIDES = (2, 5, 7), (1, 2, 3)  # the last chunks are short along both axes
NUMBERS = np.random.default_rng(1).normal(size=SHAPE)
EACH = list(product(range(2), range(0, 5, 2), range(0, 7, 3)))


def place(part, i, j):
    return part, slice(i, min(i + 2, 5)), slice(j, min(j + 3, 7))


@pytest.fixture
def parts(tmp_path):
    store = Store(tmp_path / "parts.zarr")
    store.create({"writer": "first"})
    store.require(PARTS, SHAPE, SIDES, "float64", None)
    return store


@pytest.mark.parametrize("number", [int, lambda p: slice(p, p + 1)], ids=["number", "slice"])
def test_chunks_of_any_shape_are_those_of_zarr(parts, monkeypatch, number):
    with without_zarr(monkeypatch):
        for part, *others in EACH:
            where = place(part, *others)
            kept = number(part), *where[1:]
            parts.write(PARTS, kept, NUMBERS[kept])
            found = Stored(parts.location).read(PARTS, kept)
            np.testing.assert_array_equal(found, NUMBERS[kept])
    written = files(parts, PARTS)
    assert len(written) == len(EACH)
    np.testing.assert_array_equal(parts.array(PARTS)[...], NUMBERS)
    parts.array(PARTS)[...] = NUMBERS
    assert files(parts, PARTS) == written


SELECTIONS = [
    ...,
    (slice(0, 1), slice(0, 4), slice(0, 3)),
    (slice(0, 1), slice(0, 1), slice(0, 3)),
    (1, slice(4, 5), slice(3, 7)),
    (1, slice(4, 5), slice(4, 6)),
    (slice(0, 2), slice(0, 2), slice(0, 3)),
    (1, 4, slice(0, 3)),
]


@pytest.mark.parametrize("where", SELECTIONS)
def test_what_is_not_just_one_chunk_is_left_to_zarr(parts, where):
    parts.write(PARTS, ..., 0 * NUMBERS)
    parts.write(PARTS, where, NUMBERS[where])
    expected = np.zeros(SHAPE)
    expected[where] = NUMBERS[where]
    np.testing.assert_array_equal(parts.read(PARTS), expected)
    np.testing.assert_array_equal(parts.read(PARTS, where), NUMBERS[where])


def test_values_of_another_dtype_are_written_as_the_array_has_them(parts):
    where = place(1, 2, 3)
    parts.write(PARTS, where, NUMBERS[where].astype(np.float32)[..., ::-1][..., ::-1])
    np.testing.assert_array_equal(parts.read(PARTS, where), NUMBERS[where].astype(np.float32))


@pytest.mark.parametrize("damage", [*DAMAGES, "removed"])
def test_damage_of_a_single_chunk_is_named(parts, damage):
    parts.write(PARTS, ..., NUMBERS)
    damaged(Path(str(parts), PARTS, "c/1/2/1"), damage)
    with pytest.raises(StoreError, match=r"1 missing or damaged chunks: work/parts/c/1/2/1\."):
        parts.read(PARTS, (1, slice(4, 5), slice(3, 6)))


def test_rows_that_are_cut_are_read_by_zarr(parts):
    parts.write(PARTS, ..., NUMBERS)
    memory = np.empty(SHAPE)
    found = parts.read_into(memory, PARTS, slice(0, 2))
    assert found is not memory
    np.testing.assert_array_equal(found, NUMBERS)


# What is not plain

WIDER = VALUES.astype(np.float32)
REPEATED = np.repeat(VALUES, 2, axis=1)
MEMORIES = {
    "of another dtype": np.empty_like(WIDER),
    "not contiguous": np.empty_like(REPEATED)[:, ::2],
    "of fewer rows": np.empty((N - 1, WIDTH), np.float16),
    "of wider rows": np.empty_like(REPEATED),
}


@pytest.mark.parametrize("memory", MEMORIES)
def test_memory_that_does_not_fit_is_not_taken(store, memory):
    found = store.read_into(MEMORIES[memory], NAME, slice(0, N))
    assert found is not MEMORIES[memory]
    np.testing.assert_array_equal(found, VALUES)


@pytest.mark.parametrize("rows", [slice(0, N), slice(3, 6), slice(6, 7)])
@pytest.mark.parametrize("values", [WIDER, REPEATED[:, ::2]], ids=["wider", "not contiguous"])
def test_other_values_and_places_go_through_zarr(tmp_path, rows, values):
    store = made(tmp_path / "run.zarr")
    store.write(NAME, rows, values[rows])
    np.testing.assert_array_equal(store.read(NAME, rows), VALUES[rows])


def test_values_of_another_shape_are_refused(store):
    before = files(store)
    with pytest.raises(ValueError, match=r"'rows/0' takes \(3, 5\) at slice\(0, 3, None\), got"):
        store.write(NAME, CHUNKS[0], VALUES[:1])
    assert files(store) == before


class Watched(LocalStore):
    """A store of the caller's own, which may do anything."""


@pytest.mark.parametrize("place", [lambda folder: Watched(folder), lambda folder: MemoryStore()])
def test_other_places_are_read_and_written_by_zarr(tmp_path, place):
    store = made(place(tmp_path / "run.zarr"))
    for rows in CHUNKS:
        store.write(NAME, rows, VALUES[rows])
    memory = np.empty((N, WIDTH), np.float16)
    found = store.read_into(memory, NAME, slice(0, N))
    assert found is not memory
    np.testing.assert_array_equal(found, VALUES)


def test_compressed_chunks_are_read_and_written_by_zarr(tmp_path):
    store = made(tmp_path / "run.zarr", OTHER)
    store.write(OTHER, CHUNKS[0], VALUES[CHUNKS[0]])
    found = store.read_into(np.empty((LENGTH, WIDTH), np.float16), OTHER, CHUNKS[0])
    np.testing.assert_array_equal(found, VALUES[CHUNKS[0]])


PLAIN = {"serializer": BytesCodec(), "compressors": [Crc32cCodec()]}
UNLIKE = {
    "another order of bytes": PLAIN | {"serializer": BytesCodec(endian="big")},
    "no checksum": PLAIN | {"compressors": None},
    "compressed": PLAIN | {"compressors": "auto"},
    "shards": PLAIN | {"shards": (6, 5)},
}


@pytest.mark.parametrize("how", UNLIKE)
def test_arrays_of_another_layout_are_not_plain(how):
    usual = {"shape": (6, 5), "chunks": (3, 5), "dtype": "float16"}
    assert is_plain(zarr.create_array(MemoryStore(), **usual | PLAIN))  # the control
    assert not is_plain(zarr.create_array(MemoryStore(), **usual | UNLIKE[how]))


def test_who_is_no_longer_the_writer_writes_no_rows(store):
    worker = Store(store.location, writer="first")
    Store(store.location).take_over("second")
    before = files(store)
    with pytest.raises(StoreError, match="no longer the store of this run"):
        worker.write(NAME, CHUNKS[0], 0 * VALUES[CHUNKS[0]])
    assert files(store) == before


def test_a_run_that_was_replaced_is_not_read(store):
    reader = Stored(store.location)
    reader.checksum = "c0ffee"  # of the run that was opened
    with pytest.raises(StoreError, match="was replaced, or deleted"):
        reader.read_into(np.empty((N, WIDTH), np.float16), NAME, slice(0, N))


def test_a_full_disk_leaves_the_chunk_that_was_there(store, monkeypatch):
    before = files(store)

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match=r"Writing to .*run.zarr failed: .*No space left"):
        store.write(NAME, CHUNKS[0], 0 * VALUES[CHUNKS[0]])
    assert files(store) == before  # and nothing half-written beside it
