"""Full disks and missing rights: an error that names them, and nothing lost."""

import errno
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from zarr.storage import LocalStore

import stopped_run
from pydvl_datainf import StoreError
from pydvl_datainf.results.reader import InfluenceRun
from stopped_run import TIMEOUT, build, chunks, run
from undisturbed import assert_same, self_influence

pytestmark = pytest.mark.usefixtures("fork_server")

# A full disk


@pytest.mark.parametrize("writes", [0, 1, 10, 25, 50])
def test_a_full_disk_is_named_and_the_run_goes_on(tmp_path, plain, monkeypatch, writes):
    store, left = tmp_path / "run.zarr", itertools.count(writes, -1)
    write = LocalStore._set

    async def set_or_fail(self, key, value, exclusive=False):
        if next(left) <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await write(self, key, value, exclusive=exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "_set", set_or_fail)
        with pytest.raises(StoreError, match=r"Writing to .*run.zarr failed: .*No space left"):
            run(store)
    run(store)
    assert_same(store, plain)


def test_a_limit_on_the_size_of_files_is_named_and_the_run_goes_on(tmp_path):
    wide, limit = {"hidden": 200}, 12_000
    run(tmp_path / "whole.zarr", influence=build(**wide))
    size = stopped_run.run_with_largest_file
    error = stopped_run.outcome(size, tmp_path / "run.zarr", limit, wide["hidden"])
    assert isinstance(error, StoreError)
    assert "File too large" in str(error)
    assert "call run_influences again" in str(error)
    assert any("squared_norms" in name for name in chunks(tmp_path / "run.zarr"))
    assert not any("scores" in name for name in chunks(tmp_path / "run.zarr"))
    run(tmp_path / "run.zarr", influence=build(**wide))
    assert_same(tmp_path / "run.zarr", tmp_path / "whole.zarr")


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, timeout=TIMEOUT)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 150 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", "size=150k", "tmpfs", folder).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=TIMEOUT)


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount command")
def test_a_disk_that_is_really_full_and_then_grows(small_disk, plain):
    with pytest.raises(StoreError, match="No space left"):
        run(small_disk / "run.zarr")
    assert chunks(small_disk / "run.zarr")
    assert not mount("-o", "remount,size=8m", small_disk).returncode
    run(small_disk / "run.zarr")
    assert_same(small_disk / "run.zarr", plain)


# A store that cannot be written


@pytest.fixture
def public():
    """A folder that everybody may read, and nobody but its owner may write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_without_the_right_to_write(public):
    error = stopped_run.outcome(stopped_run.run_without_rights, public / "run.zarr")
    assert isinstance(error, StoreError)
    assert "cannot be written" in str(error)
    assert not (public / "run.zarr").exists()


@pytest.fixture
def public_run(plain):
    """A run that lacks a chunk, in a folder that others may write, but not into the run."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    store = shutil.copytree(plain, folder / "run.zarr")
    (store / "scores/c/0/0").unlink()
    for place, _, _ in os.walk(store):
        Path(place).chmod(0o555)
    yield store
    for place, _, _ in os.walk(store):
        Path(place).chmod(0o755)
    shutil.rmtree(folder)


def test_a_run_without_the_right_to_write(public_run):
    error = stopped_run.outcome(stopped_run.run_without_rights, public_run)
    assert isinstance(error, StoreError)
    assert "cannot be written" in str(error)


@pytest.mark.parametrize("closed", ["", "scores/c", "scores/c/1"])
def test_a_run_that_may_not_be_deleted_is_not_replaced(public_run, closed):
    for place, _, _ in os.walk(public_run):
        Path(place).chmod(0o777)
    (public_run / closed).chmod(0o555)
    before = {path: path.read_bytes() for path in public_run.rglob("*") if path.is_file()}
    error = stopped_run.outcome(stopped_run.replace_without_rights, public_run)
    assert isinstance(error, StoreError)
    assert f"cannot be replaced: nothing may be deleted in {public_run / closed}" in str(error)
    assert {path: path.read_bytes() for path in public_run.rglob("*") if path.is_file()} == before
    assert [path.name for path in public_run.parent.iterdir()] == ["run.zarr"]


def test_a_run_without_rights_that_everybody_may_delete_is_replaced(public_run):
    for place, _, _ in os.walk(public_run):
        Path(place).chmod(0o777)
    assert stopped_run.outcome(stopped_run.replace_without_rights, public_run) is None
    InfluenceRun(public_run).check()


def test_a_run_without_the_right_to_write_can_be_read(public, sound, tmp_path):
    store = shutil.copytree(sound / "zarr", tmp_path / "run.zarr")
    self_influence(InfluenceRun(store))
    public.chmod(0o755)
    shutil.copytree(store, public / "run.zarr")
    public.chmod(0o555)
    assert stopped_run.outcome(stopped_run.read_without_rights, public / "run.zarr") is None


def test_a_file_system_that_is_mounted_read_only(small_disk):
    assert not mount("-o", "remount,ro", small_disk).returncode
    with pytest.raises(StoreError, match="Read-only file system"):
        run(small_disk / "run.zarr")


def test_a_zarr_store_that_is_opened_read_only(tmp_path, plain):
    (tmp_path / "empty.zarr").mkdir()
    store = shutil.copytree(plain, tmp_path / "run.zarr")
    (store / "scores/c/0/0").unlink()
    for folder in (tmp_path / "empty.zarr", store):
        with pytest.raises(StoreError, match="read-only"):
            run(LocalStore(folder, read_only=True))


@pytest.mark.parametrize("kind", ["zarr", "top"])
def test_a_zarr_store_that_is_opened_read_only_can_be_read(sound, kind):
    done = InfluenceRun(LocalStore(sound / kind, read_only=True))
    done.check()
    np.testing.assert_array_equal(done.top(3)[1], InfluenceRun(sound / kind).top(3)[1])


def test_self_influences_of_a_zarr_store_that_is_opened_read_only(sound):
    done = InfluenceRun(LocalStore(sound / "zarr", read_only=True))
    with pytest.raises(StoreError, match="read-only"):
        self_influence(done)
