"""Ends the process at once, in a line, where Ctrl-C comes while modules are imported."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process in one line and with exit code 130 while it is open.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    usual = signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _stop(*_: Any) -> None:
    # No exception: modules that are half imported turn those into others, or print them.
    os.write(2, b"Stopped before anything was begun.\n")
    os._exit(130)
