"""Holders of locks, in processes of their own."""

import os
import time

from pydvl_datainf.results.locking import acquire, release, writing_in
from stopped_run import TIMEOUT


def race(path, inside, seconds, sender):
    """Takes and leaves a lock for some time; counts how often, and how often it was not alone."""
    entries, met, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        file = acquire(path)
        if file is not None:
            entries += 1
            try:
                inside.touch(exist_ok=False)
            except FileExistsError:
                met += 1
            inside.unlink(missing_ok=True)
            release(file, path)
    sender.send((entries, met))


def hold_and_fork(path, child):
    """Locks a file, and has a child that outlives it."""
    acquire(path)
    pid = os.fork()
    if pid == 0:
        time.sleep(TIMEOUT)
        os._exit(0)
    unnamed = child.with_suffix(".part")
    unnamed.write_text(str(pid))
    unnamed.rename(child)
    time.sleep(TIMEOUT)


def write_for(folder, sign, seconds):
    """Is at a file in a folder for some time."""
    with writing_in(folder):
        sign.touch()
        time.sleep(seconds)
        sign.write_text("done")
