"""The command line: arguments to calls; the only place that prints or exits."""

from pydvl_datainf.cli import selecting  # noqa: F401 - has a command
from pydvl_datainf.cli.commands import main

__all__ = ["main"]
