"""What commands share: runs by their place, errors as messages, and what is printed."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console, RenderableType
from rich.protocol import rich_cast
from rich.table import Table
from tqdm import tqdm

from pydvl_datainf.errors import DataInfError, StoreError
from pydvl_datainf.huggingface.folders import absence
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.facts import RUN_JOB, is_of_job
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.terminal import some, visible

MOST_SHOWN = 10
UNLIMITED = 10**6
"""Columns of a line that is not shown on a terminal: tables are then as wide as they need."""

_RUN = {"C": "R", "c": "r"}
AGAIN = re.compile(r"\b([Cc])all (?:run_influences|sum_runs) again( with the same arguments)?")
"""What Python users are told, and whoever has a job does by a command."""


def say(line: str, *, err: bool = False) -> None:
    """Prints a line.

    Args:
        line: from anybody.
        err: to stderr.
    """
    click.echo(visible(line), err=err)


def clear_bars() -> None:
    """Takes progress bars off the terminal that an error left there: it gets a line of its own."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def write(text: str) -> None:
    """Prints a text for programs as it is; a terminal gets nothing that it would obey.

    Args:
        text: lines, from anybody.
    """
    shown = visible(text, len(text)) if sys.stdout.isatty() else text
    click.echo(shown, nl=False, color=True)  # which keeps escapes in texts as they are


def opened(store: str, follow_rows: bool = False) -> InfluenceRun:
    """Opens a run by what a user calls it.

    Args:
        store: path or URL.
        follow_rows: whether the training rows of a further query may be anywhere.

    Returns:
        The run.

    Raises:
        StoreError: if nothing is there.
        ClickException: if it cannot be opened.
    """
    try:
        if "://" not in store and not Path(store).exists():
            raise StoreError(absence(Path(store).absolute(), "store at"))
        return InfluenceRun(store, allow_other_places=follow_rows)
    except (ImportError, ValueError) as error:  # of fsspec, and of metadata that are damaged
        raise click.ClickException(f"{store} cannot be opened: {error}") from error


def position_of(ids: Array, wanted: str) -> int:
    """Where a test sample is.

    Args:
        ids: of all test samples.
        wanted: an id as a user writes it.

    Returns:
        Its position.

    Raises:
        ClickException: if no test sample has that id.
    """
    names = [str(name) for name in ids.tolist()]
    if wanted not in names:
        raise click.ClickException(
            f"No test sample has the id '{wanted}'. The ids of the {len(names):,} there are: "
            f"{some(names)}"
        )
    return names.index(wanted)


def checked_k(run: InfluenceRun, k: int | None) -> int:
    """How many training samples to show at either end.

    Args:
        run: whose.
        k: how many a user asks for; None = the usual number.

    Returns:
        A number that the run has.

    Raises:
        ClickException: if the run kept fewer.
    """
    kept, n = run.top_k, run.plan.n
    if kept is not None and k is not None and k > kept:
        raise click.ClickException(
            f"This run kept the top {kept:,} of each test sample, not {k:,}."
        )
    return min(k or MOST_SHOWN, kept or n, n)


class Invalid(click.ClickException):
    """What is asked is not valid, and nothing was begun."""

    exit_code = 2


@contextmanager
def errors_as_messages(
    kind: type[click.ClickException] = click.ClickException,
    of_job: Callable[[], bool] = lambda: False,
    place: str = "--out",
) -> Iterator[None]:
    """Turns errors of this package, and of files, into messages for users of commands.

    Args:
        kind: of the exception of click that is raised.
        of_job: tells whether it is about a run that a job made.
        place: the option that names the store which is written.

    Yields:
        Nothing.

    Raises:
        ClickException: if an error was raised inside.
        kind: the same, of the kind that is asked for.
    """
    try:
        yield
    except _out_of_memory() as error:
        from pydvl_datainf.gradients.supported import SMALLER

        told = str(error).splitlines()[0]
        raise click.ClickException(f"The device has too little memory. {SMALLER} {told}") from error
    except (DataInfError, OSError, ImportError) as error:
        message = str(error).replace("overwrite=True", "--overwrite")
        message = message.replace("Choose another store, or", f"Choose another place ({place}), or")
        message = message.replace("open the run with allow_other_places=True", "use --follow-rows")
        message = message.replace('is made with rows="zarr"', "is made with rows: zarr in its job")
        if AGAIN.search(message) and of_job():
            message = AGAIN.sub(lambda found: _RUN[found[1]] + RUN_JOB[1:], message)
        raise kind(message) from error


def _out_of_memory() -> tuple[type[BaseException], ...]:
    """What torch raises where a device has too little memory; nothing where it is not loaded."""
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.cuda.OutOfMemoryError,)


def is_made_by_job(store: str) -> bool:
    """Whether there is a run that a job made.

    Args:
        store: path or URL.

    Returns:
        False also where nothing can be opened.
    """
    try:
        return is_of_job(InfluenceRun(store))
    except (DataInfError, OSError, ImportError, ValueError):
        return False


def show(tables: Iterable[RenderableType]) -> None:
    """Prints tables; where the output is no terminal, no line is broken.

    Args:
        tables: in their order.
    """
    # By itself rich would break lines for a file or a pipe at the width of some terminal, or at 80.
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else UNLIMITED)
    for table in map(rich_cast, list(tables)):  # all or nothing
        caption = None
        if not is_terminal and isinstance(table, Table):
            # Within the table it would be broken at its width, however wide the output is.
            caption, table.caption = table.caption, None
        console.print(table)
        if caption is not None:
            console.print(caption, style="table.caption")
        console.print()
