"""Locks of the operating system, which end with the process that holds them, however it ends.

Where there are none (Windows, some network file systems) everything here lets everybody in.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydvl_datainf.errors import StoreError

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

PATIENCE = 30.0
"""Seconds that writers are given to finish the file that they are at."""

_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked process would keep the locks of its parent after the parent's death."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def lock_of(store: Path) -> Path:
    """The file that whoever writes a store locks, beside it."""
    path = store.resolve()
    return path.with_name(f"{path.name}.lock")


def acquire(path: Path) -> int | None:
    """Locks a file, which is made if it is not there.

    Args:
        path: of the file, that nobody removes but `release`.

    Returns:
        What `release` takes; None where another holds the lock.
    """
    while True:
        file = _opened(path, os.O_RDWR | os.O_CREAT)
        if _has_locked(file, exclusive=True) is False:
            _close(file)
            return None
        if _is_at(file, path):
            return file
        _close(file)  # whoever held it has removed it, and the next one locks another file


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file, as far as can be seen.

    Args:
        path: of the file, as `acquire` takes it.

    Returns:
        False also where there is no such file, or it cannot be opened.
    """
    try:
        file = _opened(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _has_locked(file, exclusive=True) is False
    finally:
        _close(file)


def release(file: int, path: Path) -> None:
    """Removes a file or a folder that is locked, and then unlocks it.

    Args:
        file: what `acquire` or `own_folder` returned.
        path: of it.
    """
    if file in _held:  # not so in a forked child
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # it may be another user's
                path.unlink()
    _close(file)


def own_folder(prefix: str) -> tuple[int, Path]:
    """A new temporary folder, which is known as abandoned once its process has ended.

    Args:
        prefix: of its name.

    Returns:
        What `release` takes, and where it is.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        with suppress(FileNotFoundError):  # taken for abandoned before it was locked
            file = _opened(path, os.O_RDONLY)
            if _has_locked(file, exclusive=True) is not False and _is_at(file, path):
                return file, path
            _close(file)


def remove_abandoned(prefix: str, suffix: str) -> None:
    """Removes the temporary folders of processes that were killed.

    Args:
        prefix: of their names.
        suffix: of all files in them; a folder with anything else is not ours.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # it is another user's, or just removed
            if not all(inner.suffix == suffix for inner in path.iterdir()):
                continue
            file = _opened(path, os.O_RDONLY)
            if _has_locked(file, exclusive=True):
                release(file, path)
            else:
                _close(file)


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Keeps a folder from being taken over while a file is written in it.

    Args:
        folder: that many processes may write in at the same time.

    Yields:
        Nothing.
    """
    file = _opened(folder, os.O_RDONLY)
    try:
        _has_locked(file, exclusive=False)
        yield
    finally:
        _close(file)


@contextmanager
def taking_over(folder: Path) -> Iterator[None]:
    """Keeps writers out of a folder, after they have finished the files that they are at.

    Args:
        folder: in which others may write.

    Yields:
        Nothing.

    Raises:
        StoreError: if one does not finish.
    """
    deadline = time.monotonic() + PATIENCE
    file = _opened(folder, os.O_RDONLY)
    try:
        while _has_locked(file, exclusive=True) is False:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"A process of a run that was stopped has been writing a file in {folder} for "
                    f"{PATIENCE:g} seconds. End it, and call run_influences again."
                )
            time.sleep(0.01)
        yield
    finally:
        _close(file)


def _opened(path: Path, flags: int) -> int:
    if fcntl is None:
        return -1
    file = os.open(path, flags, 0o666)
    _held.add(file)
    return file


def _has_locked(file: int, *, exclusive: bool) -> bool | None:
    """False where others are in the way (a shared lock is waited for), None without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no such locks
        return None
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return fcntl is None or os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _close(file: int) -> None:
    if file in _held:
        _held.discard(file)
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)
