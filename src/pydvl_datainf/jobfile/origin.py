"""The job that made a run, found again: a run tells its fields, but not where its files are."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pydantic import ValidationError

from pydvl_datainf.asking.parts import runs_to_ask
from pydvl_datainf.errors import JobError, SourceError, StoreError
from pydvl_datainf.huggingface.records import Placed, brief
from pydvl_datainf.jobfile.data import columns_of
from pydvl_datainf.jobfile.paths import file_in, path_in
from pydvl_datainf.jobfile.reading import read_job
from pydvl_datainf.jobfile.records import records_of
from pydvl_datainf.jobfile.schema import TEXTS, HubData, Job
from pydvl_datainf.jobfile.texts import encoder_of
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
    def quoted(self) -> bool:
        """Whether quotes enclose texts in its files."""
        return self.job.quoting is None

    def records(self, run: InfluenceRun) -> Sequence[Placed]:
        """The training samples, as `read_training_file` reads and checks them."""
        return read_training_file(run, self)

    @property
    def train(self) -> Path:
        """The file of the training data.

        Raises:
            JobError: if it is a data set that `datasets` loads.
        """
        if isinstance(self.job.train, HubData):
            raise JobError(
                f"The training data is {self.job.train.dataset}, which datasets loads, and samples "
                "are selected from files. Save it as one (to_json), and run a job on that."
            )
        return file_in(self.folder, self.job.train)


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
        remedy = (
            "Name its training data (--train FILE)."
            if needed == "train"
            else "It does not tell how its texts were tokenised. Ask it in Python, by "
            "pydvl_datainf.asking.ask(run, influence, prompt, encoder=...), with the influence "
            "model that it was made of (influence_from_trainer(trainer).influence) or one that is "
            "built of saved files (pydvl_datainf.huggingface.InfluenceBuilder): the page 'From "
            "TRL' shows both. Or make a run by a job on the saved model, with rows: zarr."
        )
        raise JobError(f"{run.store} was made by other means than a job. {remedy}")
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
    if isinstance(named := getattr(known, needed), HubData):
        return Origin(known, Path.cwd())  # which says that it has no file
    beside = [] if run.store.path is None else [run.store.path.resolve().parent]
    tuned = (known.adapter, *(known.checkpoints or ())) if needed == "model" else ()
    there = [f for f in (Path.cwd(), *beside) if _are_in(f, named)]
    whole = [f for f in there if _are_in(f, *tuned)]  # a model's path may be absolute
    if there:
        return Origin(known, (whole or there)[0])
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


def read_training_file(run: InfluenceRun, origin: Origin) -> Sequence[Placed]:
    """Reads the training data of a run, and checks that it is still what the run was made of.

    Of the records, what the run keeps of them is compared: texts, labels, ids and shown columns.

    Args:
        run: of the job.
        origin: its job.

    Returns:
        For each training sample its place and its record.

    Raises:
        JobError: if the job is on images, whose arrays may be in a single file.
        SourceError: if the file is another; names the first sample that differs.
    """
    if origin.job.task not in TEXTS:
        raise JobError(f"Samples of task {origin.job.task} are not selected: only texts are.")
    path = origin.train
    records = records_of(origin.job, str(path), origin.folder)
    if len(records) != run.plan.n:
        raise SourceError(
            f"{path} holds {len(records):,} samples, and {run.store} was made of "
            f"{run.plan.n:,}. {_REMEDY} What a job leaves out (on_unusable: skip) has to be taken "
            "out of the file, and the run made of that."
        )
    # What is shown of a record depends neither on the tokenizer nor on the model.
    tokenizer = SimpleNamespace(is_fast=True)
    config = SimpleNamespace(id2label={}, label2id={}, num_labels=0, problem_type="")
    shown = encoder_of(origin.job, tokenizer, config).shown
    columns, ids = columns_of(origin.job, "training", records, shown)
    now = checked_columns(
        None if ids is None else {"train": ids},
        {"train": columns},
        {"train": len(records), "test": 0},
    )
    _check_same(run, origin, now, records)
    return records


_REMEDY = "Put the file back as it was, or make the run again."


def _check_same(
    run: InfluenceRun, origin: Origin, now: Mapping[str, Any], records: Sequence[Placed]
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
                f"of {origin.train} differ. {_REMEDY}"
            )
