"""`pydvl-datainf info`, `top` and `report`: what a run holds."""

from functools import partial
from pathlib import Path
from typing import Literal

import click

from pydvl_datainf.cli.commands import main
from pydvl_datainf.cli.console import (
    MOST_SHOWN,
    checked_k,
    errors_as_messages,
    is_made_by_job,
    opened,
    position_of,
    say,
    show,
    write,
)
from pydvl_datainf.cli.reliability import say_reliability
from pydvl_datainf.report import Bounds, write_report
from pydvl_datainf.results.layout import End
from pydvl_datainf.results.listing import rankings_by, rankings_of_test, records_of, written
from pydvl_datainf.results.measures import MEASURES
from pydvl_datainf.tables import info_tables, mean_tables, top_tables

ENDS: dict[str, tuple[End, ...]] = {
    "helpful": ("helpful",),
    "harmful": ("harmful",),
    "both": ("helpful", "harmful"),
}
BOUNDS = Bounds()


@main.command()
@click.argument("store")
@click.option("--blocks", is_flag=True, help="List the damping λ of each block.")
@click.option("--check", is_flag=True, help="Read every chunk through its checksum.")
def info(store: str, blocks: bool, check: bool) -> None:
    """Tells what the run in STORE holds, how far it is and what it cost.

    STORE is a folder or a URL. With --check the exit code is 1 if the run is not complete, or a
    chunk is missing or damaged.
    """
    with errors_as_messages(of_job=partial(is_made_by_job, store)):
        run = opened(store)
        show(info_tables(run, blocks))
        if check:
            run.check()
            click.echo("Every chunk was read and is sound.")


@main.command()
@click.argument("store")
@click.option("--test", metavar="ID", help="Test sample, by its id.  [default: all of them]")
@click.option(
    "--by",
    type=click.Choice(list(MEASURES)),
    help="Over all test samples, order by "
    + ", ".join(
        f"{measure.name} ({measure.definition})" if measure.definition else measure.name
        for measure in MEASURES.values()
    )
    + ".  [default: mean]",
)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    help=f"How many.  [default: {MOST_SHOWN}, or what the run kept]",
)
@click.option(
    "--most",
    type=click.Choice(list(ENDS)),
    help="Which end to show; by "
    + ", ".join(by for by, measure in MEASURES.items() if measure.is_suspicion)
    + " the harmful end is that of large numbers, which is shown alone.  [default: both]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="For people, or for programs: with texts whole and numbers in full.",
)
def top(
    store: str,
    test: str | None,
    by: str | None,
    k: int | None,
    most: str | None,
    form: Literal["table", "csv", "json", "jsonl"],
) -> None:
    """Shows the most helpful and the most harmful training samples of the run in STORE.

    STORE is a folder or a URL. Positive influence = helpful: more weight on the training sample
    lowers the loss of the test sample. Where the output is no terminal, no line is broken.
    """
    measure = _checked_measure(by, test)
    ends = ENDS[most or ("harmful" if MEASURES[measure].is_suspicion else "both")]
    with errors_as_messages(of_job=partial(is_made_by_job, store)):
        run = opened(store)
        position = None if test is None else position_of(run.test_ids, test)
        if form != "table":
            found = (
                rankings_by(run, k or MOST_SHOWN, ends[::-1], measure)
                if position is None
                else rankings_of_test(run, position, checked_k(run, k), ends)
            )
            write(written(records_of(run, found), form))
        elif position is None:
            show(mean_tables(run, k or MOST_SHOWN, ends[::-1], measure))
        else:
            show(top_tables(run, position, checked_k(run, k), ends))
        if form == "table" and measure != "loss":
            say_reliability(run)


def _checked_measure(by: str | None, test: str | None) -> str:
    if test is not None and by is not None:
        raise click.UsageError("--by is of all test samples, and --test of one: leave one out.")
    return by or "mean"


@main.command()
@click.argument("store")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page.",
)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    default=BOUNDS.k,
    show_default=True,
    help="Training samples at either end of each test sample, at most.",
)
@click.option(
    "--max-test",
    type=click.IntRange(min=1),
    default=BOUNDS.tests,
    show_default=True,
    help="Test samples, at most: the first ones.",
)
@click.option(
    "--suspects",
    type=click.IntRange(min=1),
    default=BOUNDS.suspects,
    show_default=True,
    help="Suspicious training samples, by each measure, at most.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder from which the paths of images are meant: that of the job file. Images elsewhere "
    "are not embedded; / allows for absolute paths.  [default: this]",
)
@click.option(
    "--follow-rows",
    is_flag=True,
    help="For a further query, read self-influences and training losses of the run whose rows it "
    "used wherever it says that this is, over the network too.  [default: only in a folder beside "
    "STORE]",
)
@click.option("--overwrite", is_flag=True, help="Replace any file, not only an earlier report.")
def report(
    store: str,
    out: Path,
    k: int,
    max_test: int,
    suspects: int,
    images: Path,
    follow_rows: bool,
    overwrite: bool,
) -> None:
    """Writes the run in STORE as one page of HTML.

    The page needs no network, no server and no other file: it can be opened from a folder, sent
    and archived. It shows what helped and what hurt each test sample, suspicious training samples,
    how far to trust the numbers, and what was computed how; tables can be sorted, searched and
    saved as CSV. It says what was left out. An earlier report under the same name is replaced.
    """
    with errors_as_messages(of_job=partial(is_made_by_job, store)):
        bounds = Bounds(k=k, tests=max_test, suspects=suspects)
        run = opened(store, follow_rows)
        path = write_report(run, out, bounds=bounds, images=images, overwrite=overwrite)
    say(f"Written to {path}.")
