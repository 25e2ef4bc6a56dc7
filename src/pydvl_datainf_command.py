"""The console command, apart from the package: importing that takes seconds."""

import os
import signal
from typing import Any


def main() -> None:
    """Runs the command line; Ctrl-C ends it in one line and with exit code 130 from the start."""
    usual = signal.signal(signal.SIGINT, _stop)
    from pydvl_datainf.cli import main as commands

    signal.signal(signal.SIGINT, usual)
    commands(prog_name="pydvl-datainf")  # also as python -m


def _stop(*_: Any) -> None:
    # No exception: modules that are half imported turn those into others, or print them.
    os.write(2, b"Stopped before anything was begun.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
