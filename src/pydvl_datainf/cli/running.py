"""`pydvl-datainf run`: the influences of a job."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pydvl_datainf.cli.commands import import_torch, main
from pydvl_datainf.cli.console import Invalid, errors_as_messages, say, show
from pydvl_datainf.errors import ClusterError, DataInfError, StoreError
from pydvl_datainf.huggingface.extra import check_extra
from pydvl_datainf.results.differing import differences
from pydvl_datainf.results.facts import brief_facts
from pydvl_datainf.results.reader import InfluenceRun

if TYPE_CHECKING:
    from pydvl_datainf.results.store import Store


@main.command()
@click.argument("job", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--task",
    help="causal-lm, preference, seq2seq-lm, sequence-classification, token-classification or "
    "denoising.",
)
@click.option("--model", help="Folder of the model, or its name on the hub.")
@click.option("--adapter", help="Folder of a peft adapter, or its name on the hub.")
@click.option(
    "--train", help="Training data: .jsonl, .csv, .tsv, .parquet, .npz, or a folder of datasets."
)
@click.option("--test", help="Test data.")
@click.option("--out", help="Where the result goes: a folder or a URL.")
@click.option(
    "--method",
    help="datainf, exact, ekfac, hessian-free, scaled-hessian-free or lissa.  "
    "[default: that of JOB, or datainf]",
)
@click.option("--scheduler", help="Address of a Dask scheduler whose workers do the work.")
@click.option("--jobs", type=int, help="Processes on this machine.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a run in --out; what this very job had begun goes on.",
)
@click.option("--dry-run", is_flag=True, help="Tell what the run would take, and stop.")
@click.option("--progress/--no-progress", default=True, show_default=True, help="Show bars.")
def run(
    job: Path | None,
    overwrite: bool,
    dry_run: bool,
    progress: bool,
    **options: Any,
) -> None:
    """Computes the influences that the file JOB describes, or the options.

    JOB is a YAML file; options take precedence over it. Relative paths in it are meant from its
    folder, those of options from the current one. With --dry-run the data is read and tokenised,
    the model is loaded and a few gradients are timed; nothing is written.

    \b
    task: causal-lm            # or another, see --task
    model: models/base         # a folder, or a name on the hub
    adapter: adapters/tuned    # leave out if the model itself is tuned
    train: train.jsonl         # also .csv, .tsv, .parquet, or a folder of datasets
    test: test.jsonl
    columns: {prompt: question, answer: answer}
    out: influences.zarr

    A run that was stopped goes on where it was when the same command is given again.

    With "checkpoints: [adapters/a, adapters/b]" in place of adapter (or, for models that were tuned
    whole, of model) each of them gets a run of its own in OUT.parts, and the result is their sum,
    with "weights: [2.0e-4, 1.0e-4]" if these are given.

    Weights are loaded from safetensors. Pickles, which can run code, are refused unless JOB says
    trust_pickle: true; code that comes with a model, unless it says trust_remote_code: true.

    \b
    Exit codes: 0 the run is complete; 1 it failed, and what it has is kept; 2 the job, its data or
    its model is not valid, and nothing was begun; 130 it was stopped by Ctrl-C, and what it has is
    kept.
    """  # noqa: D301 - click reads the backspaces
    try:
        _run_job(job, options, overwrite=overwrite, dry_run=dry_run, progress=progress)
    except KeyboardInterrupt:  # before there was a result
        click.echo("Stopped. Nothing was computed by this call.")
        sys.exit(130)


def _run_job(
    job: Path | None, options: dict[str, Any], *, overwrite: bool, dry_run: bool, progress: bool
) -> None:
    with errors_as_messages():
        check_extra()
    # These need the extra [hf], which is known to be installed only here.
    from pydvl_datainf.jobfile.paths import anchored, path_in
    from pydvl_datainf.jobfile.reading import read_job
    from pydvl_datainf.jobfile.sources import next_name
    from pydvl_datainf.results.store import Store

    with errors_as_messages(Invalid):
        folder = Path() if job is None else job.parent
        what = read_job(job, anchored(options))
        place = Store(path_in(folder, what.out))
        is_new = place.is_vacant()  # or holds a run; anything else is refused
    import_torch(told=progress)
    from pydvl_datainf.jobfile.asking import TASKS as ANSWERING
    from pydvl_datainf.jobfile.checkpoints import prepare_job
    from pydvl_datainf.jobfile.estimate import estimate_tables

    with errors_as_messages():
        if not (is_new or overwrite or dry_run):
            _check_same_job(place, what.as_told())
    with errors_as_messages(Invalid):
        prepared = prepare_job(what, folder, progress)
        places = prepared.places(place)  # the last of which is the result's
        all_new = is_new and all(part.is_vacant() for part in places[:-1])
    for name, told in prepared.left_out.items():
        say(f"{name.capitalize()}, since no token of them counts: {told}", err=True)
    with errors_as_messages(of_job=lambda: True), _ends_told(places, all_new=all_new):
        if dry_run:
            show(estimate_tables(prepared, place))
            return
        result = prepared.run(place.location, overwrite=overwrite, progress=progress)
        for line in brief_facts(result):
            say(line)
    say(f"Written to {place}. To go on:")
    asks = what.task in ANSWERING and result.plan.rows == "zarr"
    _tell_commands(place, next_name(what), asks=asks)


@contextmanager
def _ends_told(places: Sequence["Store"], *, all_new: bool) -> Iterator[None]:
    """Tells of what ends a run before it is done: an invalid job, or Ctrl-C."""
    try:
        yield
    except DataInfError as error:  # what shows only when the model is loaded or planned for
        if isinstance(error, ClusterError) or not all_new or _latest(places):
            raise
        raise Invalid(str(error)) from error
    except KeyboardInterrupt:
        say(_stopped(_latest(places) or places[-1]))
        sys.exit(130)


def _tell_commands(place: "Store", kept: str, *, asks: bool) -> None:
    """Tells what can be done with a result, and, where it `asks`, with its model."""
    name = shlex.quote(str(place))
    question = (f'ask {name} --prompt "..."', "where the answer to a question comes from")
    for command, tells in (
        (f"top {name}", "what helps and harms on average"),
        (f"top {name} --test ID", "what helps and harms on one test sample"),
        *([question] if asks else []),
        (f"select {name} --drop-harmful 5% -o {kept}", "the training data without what harms"),
        (f"report {name} -o report.html", "all of it in a browser"),
        (f"info {name}", "what was computed, how, and at what cost"),
    ):
        say(f"  pydvl-datainf {command}  # {tells}")


def _check_same_job(place: "Store", job: dict[str, object]) -> None:
    """Finds another job's run early: data and model, which may differ too, are compared later."""
    from pydvl_datainf.runner.entry import check_same

    there = InfluenceRun(place).metadata("run").get("job")
    if not isinstance(there, dict):
        check_same(place, ["it was made by other means than a job"])
    else:
        check_same(place, [f"job: {line}" for line in differences(there, job)])


def _latest(places: Sequence["Store"]) -> "Store | None":
    """The last of several places, in which one run after the other is made, that is begun."""
    return next((place for place in reversed(places) if not place.is_vacant()), None)


def _stopped(place: "Store") -> str:
    """What is kept of a run that was stopped, and what is computed again."""
    try:
        run = InfluenceRun(place)
    except StoreError:
        return "Stopped before there was anything of the result: the same command starts anew."
    kept = "Stopped. What there is of the result is kept, and the same command goes on"
    if run.parts or run.is_complete:  # a sum, or one of several checkpoints
        return f"{kept}."
    if run.plan.rows == "zarr":
        return f"{kept}; the training gradients on disk are not computed again."
    if run.plan.rows == "recompute":
        return f"{kept}; the pass over the training gradients that was begun is computed again."
    return (
        f"{kept}. The training gradients were kept in memory and are gone: those that are still "
        f"needed, {run.plan.n:,} at most, are computed again (rows: zarr keeps them on disk)."
    )
