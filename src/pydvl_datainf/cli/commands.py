"""The commands that make and show runs, and what all commands belong to."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import click

from pydvl_datainf._version import __version__
from pydvl_datainf.cli.console import (
    MOST_SHOWN,
    Invalid,
    checked_k,
    clear_bars,
    errors_as_messages,
    is_made_by_job,
    opened,
    position_of,
    say,
    show,
    write,
)
from pydvl_datainf.demo.output import REPORT
from pydvl_datainf.demo.packages import check_packages
from pydvl_datainf.demo.settings import MAX_TOKENS, DemoSettings
from pydvl_datainf.errors import ClusterError, DataInfError, StoreError
from pydvl_datainf.huggingface.extra import check_extra
from pydvl_datainf.report import Bounds, write_report
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.facts import brief_facts
from pydvl_datainf.results.listing import (
    End,
    rankings_by,
    rankings_of_test,
    records_of,
    written,
)
from pydvl_datainf.results.measures import MEASURES
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.entry import check_same
from pydvl_datainf.tables import (
    info_tables,
    mean_tables,
    top_tables,
)
from pydvl_datainf.terminal import visible
from pydvl_datainf.yardstick import bank_beside
from pydvl_datainf.yardstick.retraining import FEWEST

Function: TypeAlias = Callable[..., None]

ENDS: dict[str, tuple[End, ...]] = {
    "helpful": ("helpful",),
    "harmful": ("harmful",),
    "both": ("helpful", "harmful"),
}
BOUNDS = Bounds()

DEFAULTS = {field.name: field.default for field in fields(DemoSettings)}


def _setting(
    option: str, kind: click.IntRange | click.FloatRange, text: str
) -> Callable[[Function], Function]:
    default = DEFAULTS[option.removeprefix("--").replace("-", "_")]
    return click.option(option, type=kind, default=default, show_default=True, help=text)


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


@click.group(cls=_Commands)
@click.version_option(__version__, package_name="pydvl-datainf")
def main() -> None:
    """DataInf for pyDVL: which training examples helped or hurt which predictions."""


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
    help="Over all test samples, order by the mean or the median influence, by relative influence "
    "(mean influence / √self-influence), self-influence or training loss, or by suspicion: the "
    "average of the ranks of training loss and relative influence.  [default: mean]",
)
@click.option(
    "--k",
    type=click.IntRange(min=1),
    help=f"How many.  [default: {MOST_SHOWN}, or what the run kept]",
)
@click.option(
    "--most",
    type=click.Choice(list(ENDS)),
    help="Which end to show; by self, loss and suspicion the harmful end is that of large numbers, "
    "which is shown alone.  [default: both]",
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
    from pydvl_datainf.jobfile.checkpoints import prepare_job
    from pydvl_datainf.jobfile.estimate import estimate_tables
    from pydvl_datainf.jobfile.paths import anchored, path_in
    from pydvl_datainf.jobfile.reading import read_job

    with errors_as_messages(Invalid):
        folder = Path() if job is None else job.parent
        what = read_job(job, anchored(options))
        place = Store(path_in(folder, what.out))
        is_new = place.is_vacant()  # or holds a run; anything else is refused
    with errors_as_messages():
        if not (is_new or overwrite or dry_run):
            _check_same_job(place, what.as_told())
    with errors_as_messages(Invalid):
        prepared = prepare_job(what, folder, progress)
        places = prepared.places(place)  # the last of which is the result's
        all_new = is_new and all(part.is_vacant() for part in places[:-1])
    for name, told in prepared.left_out.items():
        say(f"{name.capitalize()}, since no token of them counts: {told}", err=True)
    with errors_as_messages(of_job=lambda: True):
        try:
            if dry_run:
                show(estimate_tables(prepared, place))
                return
            result = prepared.run(place.location, overwrite=overwrite, progress=progress)
        except DataInfError as error:  # what shows only when the model is loaded or planned for
            is_begun = isinstance(error, ClusterError) or not all_new or _latest(places)
            if is_begun:
                raise
            raise Invalid(str(error)) from error
        except KeyboardInterrupt:
            say(_stopped(_latest(places) or place))
            sys.exit(130)
        for line in brief_facts(result):
            say(line)
    name = shlex.quote(str(place))
    say(f"Written to {place}. To go on:")
    for command, tells in (
        (f"top {name}", "what helps and harms on average"),
        (f"top {name} --test ID", "what helps and harms on one test sample"),
        (f"report {name} -o report.html", "all of it in a browser"),
        (f"info {name}", "what was computed, how, and at what cost"),
    ):
        say(f"  pydvl-datainf {command}  # {tells}")


def _check_same_job(place: Store, job: dict[str, object]) -> None:
    """Finds another job's run early: data and model, which may differ too, are compared later."""
    there = InfluenceRun(place).metadata("run").get("job")
    if not isinstance(there, dict):
        check_same(place, ["it was made by other means than a job"])
    else:
        check_same(place, [f"job: {line}" for line in differences(there, job)])


@main.command()
@click.argument("job", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Retrain on as many halves of the training data as this allows, measured by the first.",
)
@click.option(
    "--subsets", type=click.IntRange(min=FEWEST), help="How many halves instead.  [default: 50]"
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


def _finished(place: Store, job: dict[str, object], command: str) -> InfluenceRun:
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


def _latest(places: Sequence[Store]) -> Store | None:
    """The last of several places, in which one run after the other is made, that is begun."""
    return next((place for place in reversed(places) if not place.is_vacant()), None)


def _stopped(place: Store) -> str:
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


@main.command()
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
    then twice on each random half. What was tuned is kept in OUT: the same command goes on where it
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
    from pydvl_datainf.demo.validation import validate_demo

    found = validate_demo(
        settings, out, minutes, progress=progress, announce=lambda line: say(line, err=True)
    )
    show([found])
    say(found.meaning)
