"""From a selection of training samples to files: the next training data, and what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydvl_datainf.errors import JobError, OutputExistsError, SourceError
from pydvl_datainf.huggingface.records import Placed
from pydvl_datainf.huggingface.subsets import Columns, check_absent
from pydvl_datainf.jobfile.named_file import NamedFile
from pydvl_datainf.jobfile.origin import Origin
from pydvl_datainf.jobfile.sources import FileSource, HubSource
from pydvl_datainf.results.listing import named_apart, plain, written
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.relabelling import suggest_labels
from pydvl_datainf.results.selection import SampleSelection

CLASSIFICATION = "sequence-classification"
SUGGESTED = "suggested_label"


@dataclass(frozen=True, slots=True)
class Written:
    """Files of a selection.

    Attributes:
        kept: the training data that is left.
        dropped: what was left out, with scores and reasons.
        relabelled: the same records as they are in the training data, with suggested labels beside
            them, if that was asked for.
    """

    kept: Path
    dropped: Path
    relabelled: Path | None

    @classmethod
    def beside(cls, out: Path, *, relabel: bool) -> "Written":
        """Where the files go.

        Args:
            out: the training data that is left.
            relabel: whether labels are suggested.

        Returns:
            Their paths.

        Raises:
            OutputExistsError: if it is the current folder, or that of all files.
        """
        if not out.name:
            raise OutputExistsError(f"{out} is there, and holds other things. Choose another name.")
        stem = out.stem if out.suffix else out.name
        relabelled = out.with_name(f"{stem}.relabel{out.suffix}")
        return cls(out, out.with_name(f"{stem}.dropped.jsonl"), relabelled if relabel else None)


def write_selection(
    run: InfluenceRun,
    origin: Origin | NamedFile,
    selection: SampleSelection,
    files: Written,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the training data that is kept, and what is dropped with the reason.

    Args:
        run: the samples of which were selected.
        origin: its job, or its training data where there is none.
        selection: of its training samples.
        files: where to.
        overwrite: replace files that are there; never the training data of the job.

    Raises:
        JobError: if labels are to be suggested, and the job is no classification.
        OutputExistsError: if a file is there that is not replaced.
        SourceError: if the training data is not what the run was made of, none is left, or it has a
            column of suggestions already.
    """
    source = origin.source
    labelled = None if files.relabelled is None else _labelled(origin)
    source.check_writable(files.kept, overwrite=overwrite)
    source.check_is_other(files.dropped)
    check_absent(files.dropped, overwrite=overwrite and not files.dropped.is_dir())
    if files.relabelled is not None:
        source.check_writable(files.relabelled, overwrite=overwrite)
    records = origin.records(run)
    suggested = {} if labelled is None else _suggested(run, selection, records, labelled[1])
    source.check_writable(files.kept, overwrite=overwrite)  # reading may have taken long
    source.write(records, selection, files.kept)
    _write_lines(files.dropped, _told(run, selection))
    if files.relabelled is not None and labelled is not None:
        dropped = selection.dropped.tolist()
        labelled[0].write_with(records, dropped, suggested, files.relabelled)


def _labelled(origin: Origin | NamedFile) -> tuple[FileSource | HubSource, str]:
    """The training data of a classification, and its column of labels."""
    if isinstance(origin, NamedFile) or origin.task != CLASSIFICATION:
        raise JobError(f"Labels are suggested for {CLASSIFICATION}, not {origin.task}.")
    source = origin.source
    assert isinstance(source, FileSource | HubSource)  # the task reads texts
    return source, origin.job.columns.label or "label"


def _suggested(
    run: InfluenceRun, selection: SampleSelection, records: Sequence[Placed], label: str
) -> Columns:
    """Labels to check and why, by names that no record has."""
    taken = {name for _, record in records for name in record}
    if SUGGESTED in taken:
        raise SourceError(
            f"{records[0][0].file} has a column '{SUGGESTED}' already. Call it something else "
            "there, or leave --relabel out."
        )
    labels = suggest_labels(run, selection.dropped)
    told = {SUGGESTED: _as_given(labels, run, records, label), **_why(selection)}
    return {f"selection_{name}" if name in taken else name: told[name] for name in told}


def _as_given(
    labels: Sequence[str | None], run: InfluenceRun, records: Sequence[Placed], column: str
) -> Sequence[Any]:
    """Labels as the records write them, which may be numbers or lists; the run has texts."""
    given = [record[column] for _, record in records]
    written = dict(zip(run.metadata("train")["label"].tolist(), given, strict=True))
    suggested = {label for label in labels if label is not None}
    if all(isinstance(label, int) for label in given):
        written |= {label: int(label) for label in suggested if label.isdecimal()}
    # Test samples may have labels that no record has: then all stay texts.
    is_known = suggested <= written.keys()
    return [None if label is None else written[label] for label in labels] if is_known else labels


def _why(selection: SampleSelection) -> dict[str, list[Any]]:
    dropped = selection.dropped
    return {
        "reason": [selection.reason] * len(dropped),
        "position": dropped.tolist(),
        selection.measure.replace(" ", "_"): [plain(value) for value in selection.values[dropped]],
    }


def _told(run: InfluenceRun, selection: SampleSelection) -> list[dict[str, Any]]:
    """What the run tells of the samples that are dropped."""
    dropped = selection.dropped
    why = _why(selection)
    ids = {"id": run.train_ids[dropped]}
    own = {"reason": why.pop("reason"), **ids, **why}
    columns = {name: values[dropped] for name, values in run.metadata("train").items()}
    return [named_apart(_row(own, i), _row(columns, i)) for i in range(len(dropped))]


def _row(columns: Mapping[str, Any], i: int) -> dict[str, Any]:
    return {name: plain(values[i]) for name, values in columns.items()}


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.resolve().write_text(written(records, "jsonl"), encoding="utf-8")
