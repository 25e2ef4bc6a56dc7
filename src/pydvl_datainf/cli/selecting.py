"""`pydvl-datainf select`: the next training data."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pydvl_datainf.cli.commands import main
from pydvl_datainf.cli.console import errors_as_messages, is_made_by_job, opened, say
from pydvl_datainf.cli.reliability import say_reliability
from pydvl_datainf.huggingface.extra import check_extra
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.selection import Amount, SampleSelection, select_samples

if TYPE_CHECKING:
    from pydvl_datainf.jobfile.named_file import NamedFile
    from pydvl_datainf.jobfile.origin import Origin
    from pydvl_datainf.jobfile.selecting import Written


class _Amount(click.ParamType[Amount]):
    """A number of samples, or a share of them in percent."""

    name = "N|P%"

    def convert(self, value: Any, param: Any, ctx: Any) -> Amount:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if re.fullmatch(r"[0-9]{1,9}", value):
            return int(value)
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?%", value):
            return float(value[:-1]) / 100
        raise click.BadParameter(
            f"{value!r} is neither a number of samples nor a share such as 30%.", ctx, param
        )


@main.command()
@click.argument("store")
@click.option("--drop-harmful", type=_Amount(), help="Leave out so many that harm most.")
@click.option("--keep-helpful", type=_Amount(), help="Keep so many that help most.")
@click.option(
    "--drop-helpful",
    type=_Amount(),
    help="Leave out so many that help most: the control, which should make the model worse.",
)
@click.option(
    "--drop-suspicious",
    type=_Amount(),
    help="Leave out so many that are most suspicious; the run needs self_influence: true.",
)
@click.option(
    "--for",
    "group",
    metavar="GROUP",
    help="Test samples that count: one by its id, or those with a value in a column, as "
    "label=bad.  [default: all]",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The training data that is kept, in the format of the job's own; of a data set that "
    "datasets loads .jsonl, .parquet or a folder; of images .csv or .jsonl, with scores.",
)
@click.option(
    "--relabel",
    is_flag=True,
    help="Of a classification, write the records that are left out with the label of the test "
    "samples that each harms most, for a person to check.",
)
@click.option(
    "--job",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of the run's job.  [default: what the run tells, with paths meant from here or from "
    "its folder]",
)
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    help="File of the training data of a run that no job made, such as one of a trainer; each "
    "sample has its id in the column id.",
)
@click.option("--overwrite", is_flag=True, help="Replace files; never the job's training data.")
def select(
    store: str,
    drop_harmful: Amount | None,
    keep_helpful: Amount | None,
    drop_helpful: Amount | None,
    drop_suspicious: Amount | None,
    group: str | None,
    out: Path,
    relabel: bool,
    job: Path | None,
    train: Path | None,
    overwrite: bool,
) -> None:
    """Writes the training data to tune on next, chosen by the run in STORE.

    Amounts are numbers of samples, or shares such as 30%. Records are kept whole and unchanged; to
    those of images their scores are added, and paths are meant from the new file's folder. Beside
    OUT, those that were left out are listed with scores and reasons (OUT.dropped.jsonl), and with
    --relabel written whole, with a column suggested_label (next.csv: next.relabel.csv). The
    training data must be as it was when the run was made.
    """
    rules: dict[str, Any] = {
        "drop_harmful": drop_harmful,
        "keep_helpful": keep_helpful,
        "drop_helpful": drop_helpful,
        "drop_suspicious": drop_suspicious,
    }
    _check_one(rules, job, train)
    with errors_as_messages():
        check_extra()
    # These need the extra [hf], which is known to be installed only here.
    from pydvl_datainf.jobfile.named_file import NamedFile
    from pydvl_datainf.jobfile.origin import origin_of
    from pydvl_datainf.jobfile.selecting import Written, write_selection

    with errors_as_messages(of_job=partial(is_made_by_job, store)):
        run = opened(store)
        run.check_complete()
        origin = origin_of(run, job, "train") if train is None else NamedFile(train)
        chosen = _selection(run, group, rules)
        files = Written.beside(out, relabel=relabel)
        write_selection(run, origin, chosen, files, overwrite=overwrite)
    for line in _summary(chosen, files, origin, drop_harmful or drop_helpful):
        say(line)
    say_reliability(run)


def _check_one(rules: dict[str, Any], job: Path | None, train: Path | None) -> None:
    if job is not None and train is not None:
        raise click.UsageError("Give either --job or --train.")
    if sum(amount is not None for amount in rules.values()) != 1:
        options = (f"--{name.replace('_', '-')}" for name in rules)
        raise click.UsageError(f"Give one of {', '.join(options)}.")


def _selection(run: InfluenceRun, group: str | None, rules: dict[str, Any]) -> SampleSelection:
    try:
        return select_samples(run, **rules, group=group)
    except ValueError as error:  # of what was asked
        raise click.UsageError(str(error)) from error


def _summary(
    chosen: SampleSelection, files: "Written", origin: "Origin | NamedFile", asked: Amount | None
) -> Iterator[str]:
    """What was written, and what to do with it."""
    n = len(chosen.kept) + len(chosen.dropped)
    yield f"Kept {len(chosen.kept):,} of {n:,} training samples: {files.kept}"
    yield f"Left out {len(chosen.dropped):,}, {chosen.reason}: {files.dropped}"
    wanted = round(asked * n) if isinstance(asked, float) else asked
    if wanted is not None and len(chosen.dropped) < wanted:
        way, sign = ("harm", "negative") if "harmful" in chosen.reason else ("help", "positive")
        yield f"No more of them {way}: the mean influence of all others is not {sign}."
    useless = int((chosen.values[chosen.kept] <= 0).sum())
    if chosen.reason.startswith("not among") and useless:
        yield f"Of those that were kept, {useless:,} do not help: there were no others."
    if files.relabelled is not None:
        yield f"Labels to check, with suggestions: {files.relabelled}"
    job = getattr(origin, "job", None)
    if job is None:
        yield f"To tune again, train as before on {files.kept}."
        return
    tuned = next(
        name for name in ("checkpoints", "adapter", "model") if getattr(job, name) is not None
    )
    yield (
        f"To tune again, train as before on {files.kept}. Then change in the job: train: "
        f"{files.kept.absolute()}, {tuned}: what was tuned on it, out: another place."
    )
