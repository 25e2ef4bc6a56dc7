"""From a selection of training samples to files: the next training data, and what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydvl_datainf.errors import JobError, OutputExistsError
from pydvl_datainf.huggingface.subsets import check_absent
from pydvl_datainf.jobfile.named_file import NamedFile
from pydvl_datainf.jobfile.origin import Origin
from pydvl_datainf.results.listing import named_apart, plain, written
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.relabelling import suggest_labels
from pydvl_datainf.results.selection import SampleSelection

CLASSIFICATION = "sequence-classification"


@dataclass(frozen=True, slots=True)
class Written:
    """Files of a selection.

    Attributes:
        kept: the training data that is left.
        dropped: what was left out, with scores and reasons.
        relabelled: the same with suggested labels, if that was asked for.
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
        named = [out.with_name(f"{stem}.{what}.jsonl") for what in ("dropped", "relabel")]
        return cls(out, named[0], named[1] if relabel else None)


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
        SourceError: if the training data is not what the run was made of, or none is left.
    """
    source = origin.source
    source.check_writable(files.kept, overwrite=overwrite)
    others = [path for path in (files.dropped, files.relabelled) if path is not None]
    for path in others:
        source.check_is_other(path)
        check_absent(path, overwrite=overwrite and not path.is_dir())
    suggested = None
    if files.relabelled is not None:
        if origin.task != CLASSIFICATION:
            raise JobError(f"Labels are suggested for {CLASSIFICATION}, not {origin.task}.")
        suggested = suggest_labels(run, selection.dropped)
    records = origin.records(run)
    source.check_writable(files.kept, overwrite=overwrite)  # reading may have taken long
    source.write(records, selection, files.kept)
    reason = {"reason": [selection.reason] * len(selection.dropped)}
    _write_lines(files.dropped, _told(run, selection, reason))
    if files.relabelled is not None and suggested is not None:
        labels = {"suggested_label": suggested}
        _write_lines(files.relabelled, _told(run, selection, {**labels, **reason}))


def _told(
    run: InfluenceRun, selection: SampleSelection, first: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """What the run tells of the samples that are dropped, behind `first` of each."""
    dropped = selection.dropped
    own = {
        **first,
        "id": run.train_ids[dropped],
        "position": dropped,
        selection.measure.replace(" ", "_"): selection.values[dropped],
    }
    columns = {name: values[dropped] for name, values in run.metadata("train").items()}
    return [named_apart(_row(own, i), _row(columns, i)) for i in range(len(dropped))]


def _row(columns: Mapping[str, Any], i: int) -> dict[str, Any]:
    return {name: plain(values[i]) for name, values in columns.items()}


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.resolve().write_text(written(records, "jsonl"), encoding="utf-8")
