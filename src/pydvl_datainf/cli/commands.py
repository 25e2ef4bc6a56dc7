"""The click group of all commands: how each ends at Ctrl-C, and which import torch."""

import sys
from importlib import import_module
from typing import Any

import click

from pydvl_datainf._version import __version__
from pydvl_datainf.cli.console import clear_bars, say
from pydvl_datainf.interrupts import ending_at_once
from pydvl_datainf.terminal import visible


class _Commands(click.Group):
    """Commands whose messages, which may quote anybody, cannot play tricks on the terminal."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            clear_bars()
            vars(error).update(message=visible(error.message))
            raise
        except KeyboardInterrupt:
            clear_bars()
            say("Stopped.", err=True)
            sys.exit(130)


class WithTorch(click.Command):
    """A command for which torch is imported: not by others, since it takes seconds."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        import_torch(told=ctx.params.get("progress", True))
        return super().invoke(ctx)


def import_torch(*, told: bool) -> None:
    """Imports torch, and whatever else takes seconds and all that compute need.

    Args:
        told: whether a terminal is told what takes so long.
    """
    if told and sys.stderr.isatty():
        say("Importing torch, pyDVL and transformers takes some seconds ...", err=True)
    with ending_at_once():
        import_module("pydvl_datainf.runner.run")


@click.group(cls=_Commands)
@click.version_option(__version__, package_name="pydvl-datainf")
def main() -> None:
    """DataInf for pyDVL: which training examples helped or hurt which predictions."""
