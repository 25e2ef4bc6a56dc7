"""The command line: arguments to calls; the only place that prints or exits."""

from pydvl_datainf.cli import (  # noqa: F401 - each has commands
    asking,
    demonstrating,
    running,
    selecting,
    showing,
    validating,
)
from pydvl_datainf.cli.commands import main

__all__ = ["main"]
