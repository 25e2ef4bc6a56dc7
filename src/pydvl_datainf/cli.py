"""The command line: arguments to calls; the only module that prints or exits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import click

from pydvl_datainf._version import __version__
from pydvl_datainf.demo.output import output_folder
from pydvl_datainf.demo.packages import check_packages
from pydvl_datainf.demo.settings import MAX_TOKENS, DemoSettings
from pydvl_datainf.errors import DataInfError

Function: TypeAlias = Callable[..., None]

DEFAULTS = {field.name: field.default for field in fields(DemoSettings)}


def _setting(
    option: str, kind: click.IntRange | click.FloatRange, text: str
) -> Callable[[Function], Function]:
    default = DEFAULTS[option.removeprefix("--").replace("-", "_")]
    return click.option(option, type=kind, default=default, show_default=True, help=text)


@click.group()
@click.version_option(__version__, package_name="pydvl-datainf")
def main() -> None:
    """DataInf for pyDVL: which training examples helped or hurt which predictions."""


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-results"),
    show_default=True,
    help="Folder for the scores and the plots.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace an earlier result, once there is a new one."
)
@_setting("--train", click.IntRange(min=1), "Training reviews; each gets a score.")
@_setting("--test", click.IntRange(min=1), "Held-out reviews, on which influence is measured.")
@_setting("--epochs", click.IntRange(min=1), "Passes over the training reviews in tuning.")
@_setting(
    "--flip",
    click.FloatRange(0, 0.5, min_open=True, max_open=True),
    "Share of the training labels that are flipped.",
)
@_setting("--rank", click.IntRange(min=1), "Rank of the LoRA adapters.")
@_setting("--tokens", click.IntRange(3, MAX_TOKENS), "Length at which reviews are cut.")
@_setting("--batch-size", click.IntRange(min=1), "Reviews in a batch.")
@_setting("--learning-rate", click.FloatRange(0, min_open=True), "AdamW's learning rate, constant.")
@_setting("--seed", click.IntRange(min=0), "Decides all that is random.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show bars.")
def demo(out: Path, overwrite: bool, progress: bool, **settings: Any) -> None:
    """Finds wrong labels in film reviews with a LoRA-tuned transformer.

    Film reviews are drawn at random from a corpus of 12,752, so that --train and --test together
    can be that many at most. A share (--flip) of the training labels, fresh or rotten, is made
    wrong. all-MiniLM-L6-v2 gets LoRA adapters on query and value and is tuned on them. Then
    DataInf gives the influence of each training review on each test review, and several scores
    try to tell the flipped labels from the right ones.

    Time grows in proportion to --train (times --epochs for tuning), --test and --tokens; memory
    in proportion to --train times --rank: 300 MB of gradients for 2,000 reviews at rank 4. Where
    other programs use the same cores, set OMP_WAIT_POLICY=PASSIVE in the environment: torch's
    threads then do not spin while they wait for each other.

    The seed decides which reviews are taken, which labels are flipped, the initial adapters, the
    order of the batches and the dropout. On one machine, with the same number of threads, the same
    settings give the same scores; elsewhere they differ a little. Another seed shows how much of
    a result is chance.
    """
    with _errors_as_messages():
        check_packages()
        with output_folder(out, overwrite) as folder:
            _run(DemoSettings(**settings), folder, progress)
    click.echo(f"Written to {out.resolve()}:")
    for path in sorted(out.iterdir()):
        click.echo(f"  {path.name}")


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    try:
        yield
    except (DataInfError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _run(settings: DemoSettings, folder: Path, progress: bool) -> None:
    # These need the extra [demo], which is known to be installed only here.
    from rich.console import Console

    from pydvl_datainf.demo.run import run_demo, write_result
    from pydvl_datainf.demo.tables import tables

    status, console = Console(stderr=True), Console()
    result = run_demo(
        settings, progress=progress, announce=lambda stage: status.print(f"{stage} …")
    )
    write_result(folder, result)
    for table in tables(result):
        console.print(table)
        console.print()
