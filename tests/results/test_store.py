"""The store of a run: the contract at every kind of place, what only folders have, and paths."""

import uuid
from pathlib import Path

import numpy as np
import pytest
from zarr.storage import LocalStore, MemoryStore, ZipStore

from pydvl_datainf import StoreError, StoreExistsError
from pydvl_datainf.results.store import Store
from store_contract import ATTRIBUTES, VALUES, StoreContract


class FolderContract(StoreContract):
    """What a folder has beside: a lock for each run, and leftovers of killed ones."""

    def test_a_folder_is_shared_with_other_processes(self, store, tmp_path):
        assert store.path == tmp_path / "run.zarr"
        assert store.is_shared

    def test_one_run_at_a_time_holds_the_lock(self, store, tmp_path):
        with (
            store.locked(),
            pytest.raises(StoreError, match=r"Another run is writing to .*run\.zarr\. Wait"),
            Store(store.location).locked(),
        ):
            pytest.fail("two hold the lock")
        with Store(store.location).locked():
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]

    def test_leftovers_of_killed_runs_are_removed(self, store, tmp_path):
        old = tmp_path / ".run.zarr.123.old"
        (old / "a").mkdir(parents=True)
        half = tmp_path / "run.zarr" / "a" / "c" / "0" / f"0.{uuid.uuid4().hex}.partial"
        half.touch()
        with store.locked():
            store.sweep()
        assert not old.exists()
        assert not half.exists()
        np.testing.assert_array_equal(store.read("a"), VALUES)

    def test_a_folder_with_only_a_killed_writers_metadata_is_vacant(self, vacant, tmp_path):
        folder = tmp_path / "run.zarr"
        folder.mkdir()
        (folder / f"zarr.{uuid.uuid4().hex}.partial").touch()
        assert vacant.is_vacant()
        (folder / "notes.txt").touch()
        with pytest.raises(StoreExistsError, match="never replaced"):
            vacant.is_vacant()

    def test_a_file_in_its_place_is_kept(self, vacant, tmp_path):
        (tmp_path / "run.zarr").write_text("mine")
        with pytest.raises(StoreExistsError, match=r"run.zarr is a file. Choose another place"):
            vacant.is_vacant()

    def test_knows_stores_within_by_any_name(self, store, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "run.zarr")
        linked, parent = Store(tmp_path / "link"), Store(tmp_path)
        assert linked.holds(store)
        assert store.holds(linked)
        assert parent.holds(store)
        assert not store.holds(parent)


class TestFolder(FolderContract):
    def place(self, folder):
        return folder / "run.zarr"


class TestLocalStore(FolderContract):
    def place(self, folder):
        return LocalStore(folder / "run.zarr")


class TestMemoryStore(StoreContract):
    def place(self, folder):
        return MemoryStore()

    def test_is_seen_by_this_process_alone_and_has_no_lock(self, store):
        assert store.path is None
        assert not store.is_shared
        with store.locked(), Store(store.location).locked():
            store.sweep()


class TestURL(TestMemoryStore):
    """By way of fsspec, as stores in object storage are."""

    def place(self, folder):
        return f"memory://{folder.name}-{uuid.uuid4().hex}"


# Places


def test_a_zip_file_is_refused(tmp_path):
    for place in ("run.zip", tmp_path / "run.zip", ZipStore(tmp_path / "run.zip", mode="w")):
        with pytest.raises(StoreError, match="Use a folder, and pack it"):
            Store(place)


def test_paths_become_absolute_however_they_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / "run.zarr"
    for place in ("run.zarr", Path("run.zarr"), LocalStore("run.zarr"), f"file://{here}"):
        assert Store(place).path == here
    assert Store("~/run.zarr").path == here
    assert Store("a::b.zarr").path == tmp_path / "a::b.zarr"


@pytest.mark.parametrize("place", ["a\0b", "x" * 5000, "~nobody-of-this-name/run.zarr"])
def test_what_is_no_path_is_refused(place):
    with pytest.raises(StoreError, match="cannot be the path of a store"):
        Store(place)


def test_a_store_of_zarr_that_is_read_only_is_left_as_it_is(tmp_path):
    store = Store(tmp_path / "run.zarr")
    store.create(ATTRIBUTES)
    with pytest.raises(StoreError, match="is read-only"):
        Store(LocalStore(tmp_path / "run.zarr", read_only=True)).create({})
    assert store.attributes["checksum"] == "c0ffee"
