"""The job that made a run, found again: a run tells its fields, but not where its files are."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import ValidationError

from pydvl_datainf.errors import JobError, SourceError, StoreError
from pydvl_datainf.huggingface.record_values import brief
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.jobfile.columns import columns_of
from pydvl_datainf.jobfile.encoders import encoder_of
from pydvl_datainf.jobfile.image_tables import shown_of
from pydvl_datainf.jobfile.paths import file_in, path_in
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.jobfile.schema import TEXTS, HubData, Job
from pydvl_datainf.jobfile.sources import TrainingSource, source_of
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.metadata import columns_of as checked_columns
from pydvl_datainf.results.reader import InfluenceRun


@dataclass(frozen=True, slots=True)
class Origin:
    """The job of a run.

    Attributes:
        job: its fields.
        folder: from which relative paths are meant.
    """

    job: Job
    folder: Path

    @property
    def task(self) -> str:
        """That of the job."""
        return self.job.task

    @property
    def source(self) -> TrainingSource:
        """Its training data."""
        return source_of(self.job, self.folder)

    def records(self, run: InfluenceRun) -> Sequence[Placed]:
        """The training samples, as `read_training_data` reads and checks them."""
        return read_training_data(run, self)


def origin_of(run: InfluenceRun, job: Path | None, needed: str) -> Origin:
    """Finds the job of a run: in a file, or as the run tells it.

    As the run tells it, relative paths are meant from the current folder, or from that of the run,
    where the file or folder that is needed is there.

    Args:
        run: complete or not.
        job: file of the job; None = what is in the run.
        needed: field that names what is needed, "train" or "model".

    Returns:
        The job.

    Raises:
        JobError: if the run was made by other means or by another job, or the files are elsewhere.
    """
    told = _told_job(run)
    if not isinstance(told, dict):
        raise JobError(f"{run.store} was made by other means than a job. {_WITHOUT_JOB[needed]}")
    if job is not None:
        read = read_job(job, {})
        if other := differences(told, read.as_told()):
            raise JobError(f"{run.store} is not of the job in {job}:{listed(other)}")
        return Origin(read, job.parent)
    try:
        known = Job.model_validate({**told, "out": str(run.store)})
    except ValidationError as error:
        raise JobError(f"The job that {run.store} tells of is none of this version.") from error
    if known.trust_remote_code:
        raise JobError(
            f"The job of {run.store} says that code of the model may run, which a result cannot "
            "allow. Name the file of the job (--job)."
        )
    return Origin(known, _folder_of(run, known, needed))


_WITHOUT_JOB = {
    "train": "Name its training data (--train FILE).",
    "model": (
        "It does not tell how its texts were tokenised. Ask it in Python, by "
        "pydvl_datainf.asking.ask(run, influence, prompt, encoder=...), with the influence "
        "model that it was made of (influence_from_trainer(trainer).influence) or one that is "
        "built of saved files (pydvl_datainf.huggingface.InfluenceBuilder): the page 'From "
        "TRL' shows both. Or make a run by a job on the saved model, with rows: zarr."
    ),
}
"""What to do about a run that tells of no job, by what is needed of it."""


def _folder_of(run: InfluenceRun, known: Job, needed: str) -> Path:
    """The folder from which relative paths of a job are meant."""
    named = getattr(known, needed)
    on_hub = isinstance(named, HubData)
    named = named.dataset if on_hub else named
    beside = [] if run.store.path is None else [run.store.path.resolve().parent]
    tuned = (known.adapter, *(known.checkpoints or ())) if needed == "model" else ()
    there = [f for f in (Path.cwd(), *beside) if _are_in(f, named)]
    whole = [f for f in there if _are_in(f, *tuned)]  # a model's path may be absolute
    if there:
        return (whole or there)[0]
    if on_hub:  # as what is in no folder
        return Path.cwd()
    raise JobError(
        f"{named!r}, the '{needed}' of the job of {run.store}, is neither in the current folder "
        "nor in that of the run. Name the file of the job (--job), from which paths are meant."
    )


def _are_in(folder: Path, *names: str | None) -> bool:
    return all(name is None or Path(path_in(folder, name)).exists() for name in names)


def origins_of(run: InfluenceRun, job: Path | None) -> list[Origin]:
    """Finds the job of a run that is asked, or those of the parts of a sum.

    Args:
        run: complete or not.
        job: file of the job; None = what is in the run, or of a sum that no job made, in its parts.

    Returns:
        The job; of a sum one for each part.
    """
    if not run.parts:
        return [origin_of(run, job, "model")]
    from pydvl_datainf.asking.parts import runs_to_ask  # imports torch

    if isinstance(_told_job(run), dict):
        total = origin_of(run, job, "model")
        paths = total.job.checkpoints or ()
        return [replace(total, job=total.job.of_checkpoint(path)) for path in paths]
    return [origin_of(part, job, "model") for part in runs_to_ask(run)]


def _told_job(run: InfluenceRun) -> Any:
    """The job that a run tells; answers that were kept were asked of one that tells it."""
    told = run.metadata("run").get("job")
    if told is None:
        with suppress(StoreError):  # gone, or elsewhere
            told = run.run_of_rows().metadata("run").get("job")
    return told


def read_training_data(run: InfluenceRun, origin: Origin) -> Sequence[Placed]:
    """Reads the training data of a run, and checks that it is still what the run was made of.

    Of the records, what the run keeps of them is compared: texts, labels, paths of images, ids and
    shown columns.

    Args:
        run: of the job.
        origin: its job.

    Returns:
        For each training sample its place and its record.

    Raises:
        SourceError: if the data is another; names the first sample that differs.
    """
    source = origin.source
    records = source.records()
    if len(records) != run.plan.n:
        raise SourceError(
            f"{source} holds {len(records):,} samples, and {run.store} was made of "
            f"{run.plan.n:,}. {_REMEDY} What a job leaves out (on_unusable: skip) has to be taken "
            "out of the data, and the run made of that."
        )
    columns, ids = columns_of(origin.job, "training", records, _shown_by(origin))
    now = checked_columns(
        None if ids is None else {"train": ids},
        {"train": columns},
        {"train": len(records), "test": 0},
    )
    _check_same(run, source, now, records)
    return records


def _shown_by(origin: Origin) -> Callable[[Placed], Mapping[str, Any]]:
    """What the job shows of a record."""
    job = origin.job
    if job.task not in TEXTS:
        return shown_of(job, file_in(origin.folder, str(job.train)))
    # What is shown of a record depends neither on the tokenizer nor on the model.
    tokenizer = SimpleNamespace(is_fast=True)
    config = SimpleNamespace(id2label={}, label2id={}, num_labels=0, problem_type="")
    return encoder_of(job, tokenizer, config).shown


_REMEDY = "Put the data back as it was, or make the run again."


def _check_same(
    run: InfluenceRun, source: TrainingSource, now: Mapping[str, Any], records: Sequence[Placed]
) -> None:
    then = {"train": run.train_ids}
    then |= {f"train_{name}": values for name, values in run.metadata("train").items()}
    for name in (name for name in now if name in then):
        a, b = then[name], now[name]
        other = np.flatnonzero((a != b) & ((a == a) | (b == b)))  # NaN is as it was
        if len(other):
            place, called = records[other[0]][0], name.removeprefix("train_")
            called = "id" if name == "train" else called
            raise SourceError(
                f"{place}: '{called}' is {brief(now[name][other[0]])}, and was "
                f"{brief(then[name][other[0]])} when {run.store} was made; {len(other):,} samples "
                f"of {source} differ. {_REMEDY}"
            )
