"""Locks that vanish with their holder, and whose files do not stay."""

import os
import signal

import pytest

import locked
import stopped_run
from pydvl_datainf import StoreError
from pydvl_datainf.results import locking, store
from pydvl_datainf.results.locking import (
    acquire,
    is_locked,
    lock_of,
    release,
    taking_over,
    writing_in,
)
from pydvl_datainf.results.store import Store

pytestmark = pytest.mark.usefixtures("fork_server")


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.lock"
    assert not is_locked(path)
    first = acquire(path)
    assert first is not None
    assert acquire(path) is None
    assert is_locked(path)
    release(first, path)
    assert not is_locked(path)
    assert not path.exists()
    second = acquire(path)
    assert second is not None
    release(second, path)


def test_whoever_looks_at_a_lock_keeps_no_writer_off(tmp_path, monkeypatch):
    writer, waits = Store(tmp_path / "run.zarr"), []
    glance = acquire(lock_of(writer.path))
    monkeypatch.setattr(store, "sleep", lambda s: (waits.append(s), locking._close(glance)))
    with writer.locked():
        assert writer.is_at_work()
    assert len(waits) == 1


def test_the_lock_of_a_file_that_was_just_removed_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Its last holder leaves between the opening and the locking of the file."""
    path, steps = tmp_path / "a.lock", []
    first = acquire(path)
    has_locked = locking._has_locked

    def leave_and_lock(file, *, exclusive):
        steps.append(file)
        if len(steps) == 1:
            release(first, path)
        return has_locked(file, exclusive=exclusive)

    monkeypatch.setattr(locking, "_has_locked", leave_and_lock)
    second = acquire(path)
    assert second is not None
    assert acquire(path) is None
    release(second, path)


def test_racing_processes_never_hold_a_lock_together(tmp_path):
    path, inside = tmp_path / "a.lock", tmp_path / "inside"
    receiver, sender = stopped_run.PROCESSES.Pipe(duplex=False)
    racers = [stopped_run.started(locked.race, path, inside, 1.0, sender) for _ in range(4)]
    counts = []
    for _ in racers:
        assert receiver.poll(stopped_run.TIMEOUT)
        counts.append(receiver.recv())
    assert [met for _, met in counts] == [0] * 4
    assert min(entries for entries, _ in counts) > 0
    assert not path.exists()


def test_a_lock_ends_with_its_holder_even_if_a_forked_child_lives(tmp_path):
    path, child = tmp_path / "a.lock", tmp_path / "child"
    holder = stopped_run.started(locked.hold_and_fork, path, child)
    stopped_run.wait_for(child.exists, holder)
    assert acquire(path) is None
    assert stopped_run.killed(holder) == -signal.SIGKILL
    file = acquire(path)
    os.kill(int(child.read_text()), signal.SIGKILL)  # it was alive
    assert file is not None
    release(file, path)


def test_a_folder_is_taken_over_when_its_writers_are_done(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "PATIENCE", 0.05)
    with (
        writing_in(tmp_path),
        writing_in(tmp_path),
        pytest.raises(StoreError, match=r"writing a file in .* for 0\.05 seconds"),
        taking_over(tmp_path),
    ):
        pass
    monkeypatch.setattr(locking, "PATIENCE", stopped_run.TIMEOUT)
    sign = tmp_path / "sign"
    writer = stopped_run.started(locked.write_for, tmp_path, sign, 0.3)
    stopped_run.wait_for(sign.exists, writer)
    with taking_over(tmp_path):
        assert sign.read_text() == "done"
