"""`pydvl-datainf demo`: wrong labels in film reviews."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import click

from pydvl_datainf.cli.commands import WithTorch, main
from pydvl_datainf.cli.console import errors_as_messages, say, show
from pydvl_datainf.demo.output import REPORT
from pydvl_datainf.demo.packages import check_packages
from pydvl_datainf.demo.settings import MAX_TOKENS, DemoSettings

Function: TypeAlias = Callable[..., None]

MOST_AT_ONCE = 4
"""Models that are tuned at the same time, each in a process of its own with a part of the cores."""

DEFAULTS = {field.name: field.default for field in fields(DemoSettings)}


def _setting(
    option: str, kind: click.IntRange | click.FloatRange, text: str
) -> Callable[[Function], Function]:
    default = DEFAULTS[option.removeprefix("--").replace("-", "_")]
    return click.option(option, type=kind, default=default, show_default=True, help=text)


@main.command(cls=WithTorch)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-results"),
    show_default=True,
    help="Folder for the scores, the plots and the report.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a result of other settings, once the model is tuned; one of the same settings "
    "is used again all the same.",
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
@click.option(
    "--validate",
    "minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="MINUTES",
    help="Then tune the model again on random halves of the reviews, for about so long, and "
    "measure how well the scores predict it.",
)
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show bars.")
def demo(
    out: Path, overwrite: bool, minutes: float | None, progress: bool, **settings: Any
) -> None:
    """Finds wrong labels in film reviews with a LoRA-tuned transformer.

    Film reviews are drawn at random from a corpus of 12,752, so that --train and --test together
    can be that many at most. A share (--flip) of the training labels, fresh or rotten, is made
    wrong. all-MiniLM-L6-v2 gets LoRA adapters on query and value and is tuned on them. Then
    DataInf gives the influence of each training review on each test review, and several scores
    try to tell the flipped labels from the right ones.

    The result is a run in OUT/influences.zarr, which `pydvl-datainf info` and `top` read too, and a
    report on it to look at, OUT/report.html. Where the complete result of the same settings is
    there already, it is shown again, and nothing is computed. Where the demo was stopped while it
    computed influences, it goes on from what is there, after tuning the model again and computing
    gradients again that were in memory. To compute all anew, delete the folder.

    --validate tunes the model with two other seeds first, which has to come to similar losses, and
    then twice on each random half: one model on each core, up to four at once, and each takes 1 GB
    of memory. What was tuned is kept in OUT: the same command goes on where it
    was stopped, and a later one adds as many halves as its minutes allow.

    Time grows in proportion to --train (times --epochs for tuning), --test and --tokens; memory
    in proportion to --train times --rank: 300 MB of gradients for 2,000 reviews at rank 4. Of more
    than 2,000 reviews, or where they do not fit in 2 GiB, gradients go to disk in half precision
    instead. Where other programs use the same
    cores, set OMP_WAIT_POLICY=PASSIVE in the environment: torch's threads then do not spin while
    they wait for each other.

    The seed decides which reviews are taken, which labels are flipped, the initial adapters, the
    order of the batches and the dropout. On one machine, with the same number of threads, the same
    settings give the same scores; elsewhere they differ a little. Another seed shows how much of
    a result is chance.
    """
    with errors_as_messages():
        check_packages()
        _run(DemoSettings(**settings), out, overwrite, progress)
        if minutes is not None:
            _validate_demo(DemoSettings(**settings), out, minutes, progress)
    say(f"Written to {out.resolve()}:")
    for path in sorted(out.iterdir()):
        if path.suffix != ".lock":
            say(f"  {path.name}")
    say(f"To look at it, open {out.resolve() / REPORT} in a browser.")


def _run(settings: DemoSettings, out: Path, overwrite: bool, progress: bool) -> None:
    # These need the extra [demo], which is known to be installed only here.
    from pydvl_datainf.demo.run import run_demo
    from pydvl_datainf.demo.tables import tables

    result = run_demo(
        settings,
        out,
        overwrite=overwrite,
        progress=progress,
        announce=lambda line: say(line, err=True),
    )
    show(tables(result))


def _validate_demo(settings: DemoSettings, out: Path, minutes: float, progress: bool) -> None:
    import joblib  # takes a while, as what follows does

    from pydvl_datainf.demo.validation import validate_demo

    found = validate_demo(
        settings,
        out,
        minutes,
        n_jobs=min(joblib.cpu_count(), MOST_AT_ONCE),
        progress=progress,
        announce=lambda line: say(line, err=True),
    )
    show([found])
    say(found.meaning)
