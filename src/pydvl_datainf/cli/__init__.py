"""The command line: arguments to calls; the only place that prints or exits."""

from pydvl_datainf.cli import asking, selecting  # noqa: F401 - each has a command
from pydvl_datainf.cli.commands import main

__all__ = ["main"]
