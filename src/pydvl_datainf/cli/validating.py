"""`pydvl-datainf validate`: how well a job's scores predict retraining."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pydvl_datainf.cli.commands import WithTorch, main
from pydvl_datainf.cli.console import Invalid, errors_as_messages, opened, say, show
from pydvl_datainf.huggingface.extra import check_extra
from pydvl_datainf.results.beside import bank_beside
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.reader import InfluenceRun

if TYPE_CHECKING:
    from pydvl_datainf.results.store import Store


def _enough(context: click.Context, option: click.Parameter, value: int | None) -> int | None:
    """As many as tell anything."""
    if value is None:
        return None
    from pydvl_datainf.yardstick.retraining import FEWEST

    return click.IntRange(min=FEWEST).convert(value, option, context)


@main.command(cls=WithTorch)
@click.argument("job", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Retrain on as many halves of the training data as this allows, measured by the first; "
    "loading, and checking the recipe, come on top.",
)
@click.option(
    "--subsets",
    type=int,
    callback=_enough,
    help="How many halves instead, at least 10.  [default: 50]",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Retrainings of each half; two or more also tell the most that can be reached.",
)
@click.option("--bank", help="Where losses are kept.  [default: beside the run, OUT.bank]")
@click.option("--scheduler", help="Address of a Dask scheduler whose workers do the work.")
@click.option("--jobs", type=int, help="Processes on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show bars.")
def validate(
    job: Path,
    minutes: float | None,
    subsets: int | None,
    seeds: int,
    bank: str | None,
    scheduler: str | None,
    jobs: int | None,
    as_json: bool,
    progress: bool,
) -> None:
    """Measures what the scores of JOB's run are worth for predicting retraining.

    JOB says under `training` how its model was tuned. The model is tuned so on all training data,
    with two seeds, or up to six: where it comes out as another than the given one, that is an
    error. Then it is tuned on random halves of the training data, and the test losses that come
    out are compared with what the scores predict.

    It takes about as long as (2 + half of SUBSETS times SEEDS) tunings of the model. What was done
    is kept, so the same command goes on where it was stopped, and the job of another run with the
    same data and model, given the same --bank, uses it again.

    \b
    Exit codes: 0 it is done; 1 it failed, or the recipe is another; 2 the job, its data or its
    model is not valid; 130 it was stopped by Ctrl-C. What was retrained is kept.
    """  # noqa: D301 - click reads the backspaces
    _check_budget(minutes, subsets)
    with errors_as_messages():
        check_extra()
    # These need the extra [hf], which is known to be installed only here.
    from pydvl_datainf.jobfile.paths import path_in
    from pydvl_datainf.jobfile.reading import read_job
    from pydvl_datainf.jobfile.retraining import Retraining
    from pydvl_datainf.jobfile.validation import validate_job
    from pydvl_datainf.results.store import Store

    with errors_as_messages(Invalid):
        what = read_job(job, {"scheduler": scheduler, "jobs": jobs})
        in_process = what.scheduler is None and what.jobs is None
        # A bar in a bar moves the cursor, which a file or a pipe does not have.
        steps = progress and in_process and sys.stderr.isatty()
        again = Retraining(what, job.parent, progress=steps)
        place = Store(path_in(job.parent, what.out))
    with errors_as_messages(of_job=lambda: True):
        finished = _finished(place, what.as_told(), f"pydvl-datainf run {shlex.quote(str(job))}")
        with errors_as_messages(Invalid):
            again.prepared  # noqa: B018 - reads the data
        try:
            found = validate_job(
                finished,
                again,
                bank or str(bank_beside(finished)),
                lambda line: say(line, err=True),
                subsets=subsets,
                seeds=seeds,
                minutes=minutes,
                progress=progress,
            )
        except KeyboardInterrupt:
            say("Stopped. What was retrained is kept, and the same command goes on.")
            sys.exit(130)
    if as_json:
        say(json.dumps(found.to_json(), indent=2))
        return
    show([found])
    say(found.meaning)


def _check_budget(minutes: float | None, subsets: int | None) -> None:
    if minutes is not None and subsets is not None:
        raise click.UsageError("--minutes and --subsets exclude each other; give one.")


def _finished(place: "Store", job: dict[str, object], command: str) -> InfluenceRun:
    """The complete run of a job."""
    if place.is_vacant():
        raise click.ClickException(f"There is no run at {place} yet. Make it first: {command}")
    run = opened(str(place))
    there = run.metadata("run").get("job")
    if not isinstance(there, dict):
        raise click.ClickException(f"The run at {place} was made by other means than a job.")
    if other := differences(there, job):
        raise click.ClickException(
            f"The run at {place} is of another job. What differs:{listed(other)}\n"
            f"Make it anew by {command} --overwrite, or put the job back as it was."
        )
    if not run.is_complete:
        raise click.ClickException(f"The run at {place} is not complete. Finish it: {command}")
    return run
