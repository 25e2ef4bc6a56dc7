"""Where the training samples of a job are, and how some of them are written for the next one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.records import Placed, load_split, read_dataset, read_records
from pydvl_datainf.huggingface.subsets import (
    Columns,
    check_is_other,
    check_place,
    check_writable,
    rows_of,
    whole,
    with_columns,
    without_bars,
    write_subset,
)
from pydvl_datainf.jobfile.image_tables import image_column, is_arrays
from pydvl_datainf.jobfile.paths import file_in, model_in
from pydvl_datainf.jobfile.schema import TEXTS, HubData, Job
from pydvl_datainf.results.listing import plain, written
from pydvl_datainf.results.selection import SampleSelection


class TrainingSource(Protocol):
    """Training data, some of which can be written as training data."""

    def records(self) -> Sequence[Placed]:
        """Reads all samples, each with its place."""
        ...

    def check_is_other(self, out: Path) -> None:
        """Refuses a place that is that of the data, or within it."""
        ...

    def check_writable(self, out: Path, *, overwrite: bool) -> None:
        """Checks early that `write` may write to a place.

        Args:
            out: where some samples go.
            overwrite: replace what is there.

        Raises:
            OutputExistsError: if something is there that is not replaced.
            SourceError: if the name is that of a kind that cannot hold them.
        """
        ...

    def write(self, records: Sequence[Placed], selection: SampleSelection, out: Path) -> None:
        """Writes the samples that are kept; there is all of it in the end or nothing.

        Args:
            records: as they were read.
            selection: of them.
            out: that was checked.
        """
        ...


def source_of(job: Job, folder: Path) -> TrainingSource:
    """The training data of a job.

    Args:
        job: names it.
        folder: from which relative paths are meant.

    Returns:
        A source, not read yet.
    """
    if isinstance(job.train, HubData):
        return HubSource(job.train, folder)
    path = file_in(folder, job.train)
    if job.task in TEXTS:
        return FileSource(path, quoted=job.quoting is None)
    return ArraySource(path) if is_arrays(path) else ImageSource(path, image_column(job))


def next_name(job: Job) -> str:
    """A name of training data that can be written for a job.

    Args:
        job: names its own.

    Returns:
        The name of a file or folder.
    """
    suffix = ".jsonl" if isinstance(job.train, HubData) else Path(job.train).suffix.lower()
    keeps_kind = job.task in TEXTS or suffix in (".csv", ".npz")
    return f"next{suffix if keeps_kind else '.jsonl'}"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or folder, whose records stay as they are.

    Attributes:
        path: that `read_records` reads.
        quoted: whether quotes enclose its texts.
    """

    path: Path
    quoted: bool = True

    def __str__(self) -> str:
        return str(self.path)

    def records(self) -> Sequence[Placed]:
        """Reads all samples."""
        return read_records(self.path, quoted=self.quoted)

    def check_is_other(self, out: Path) -> None:
        """Refuses the file itself, and what is within a folder."""
        check_is_other(self.path, out)

    def check_writable(self, out: Path, *, overwrite: bool) -> None:
        """Takes what is of the same kind."""
        check_writable(self.path, out, overwrite=overwrite)

    def write(self, records: Sequence[Placed], selection: SampleSelection, out: Path) -> None:
        """Writes in the format of the file, and text byte by byte."""
        self.write_with(records, _some(selection, self), {}, out)

    def write_with(
        self, records: Sequence[Placed], positions: Sequence[int], added: Columns, out: Path
    ) -> None:
        """Writes some samples in the format of the file, with further columns."""
        # What may be replaced was checked before.
        write_subset(
            self.path, records, positions, out, added=added, quoted=self.quoted, overwrite=True
        )


@dataclass(frozen=True, slots=True)
class HubSource:
    """A data set that `datasets` loads.

    Attributes:
        data: its name and its split.
        folder: from which it is meant, if it is a folder.
    """

    data: HubData
    folder: Path

    @property
    def name(self) -> str:
        """On the hub, or of a folder."""
        return model_in(self.folder, self.data.dataset)

    def __str__(self) -> str:
        return f"{self.name} {self.data.split}"

    def records(self) -> Sequence[Placed]:
        """Loads all samples."""
        return read_dataset(self.name, self.data.config, self.data.split)

    def check_is_other(self, out: Path) -> None:
        """Refuses what is within the data set, where it is a folder."""
        if Path(self.name).exists():
            check_is_other(Path(self.name), out)

    def check_writable(self, out: Path, *, overwrite: bool) -> None:
        """Takes JSON lines, Parquet, and folders."""
        kind = out.suffix.lower()
        if kind in (".csv", ".tsv", ".json", ".npz"):
            raise SourceError(
                f"{out}: samples of a data set are written as .jsonl or .parquet, or, by a name "
                "without such an ending, as a folder of datasets. Choose one of these."
            )
        self.check_is_other(out)
        check_place(out, is_folder=kind not in (".jsonl", ".parquet"), overwrite=overwrite)

    def write(self, records: Sequence[Placed], selection: SampleSelection, out: Path) -> None:
        """Writes the split's samples; labels of JSON lines are names.

        Raises:
            SourceError: if there is none, or JSON cannot hold what they are.
        """
        self.write_with(records, _some(selection, self), {}, out)

    def write_with(
        self, records: Sequence[Placed], positions: Sequence[int], added: Columns, out: Path
    ) -> None:
        """Writes some samples, with further columns.

        Raises:
            SourceError: if JSON cannot hold what they are.
        """
        kind = out.suffix.lower()
        if kind == ".jsonl":
            more = rows_of(added, len(positions))
            rows = [{**records[i][1], **more[k]} for k, i in enumerate(positions)]
            with whole(out) as part:
                _write_table(rows, part)
            return
        with whole(out) as part, without_bars():
            loaded = load_split(self.name, self.data.config, self.data.split).select(positions)
            chosen = with_columns(loaded, added)
            chosen.to_parquet(str(part)) if kind == ".parquet" else chosen.save_to_disk(str(part))


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A table of images' paths, which are meant from its folder on.

    Attributes:
        path: of the table.
        column: of the paths.
    """

    path: Path
    column: str

    def __str__(self) -> str:
        return str(self.path)

    def records(self) -> Sequence[Placed]:
        """Reads the table."""
        return read_records(self.path)

    def check_is_other(self, out: Path) -> None:
        """Refuses the table itself, and what is within a folder."""
        check_is_other(self.path, out)

    def check_writable(self, out: Path, *, overwrite: bool) -> None:
        """Takes JSON lines, and CSV where the table holds texts alone anyway."""
        texts = self.path.suffix.lower() in (".csv", ".tsv")
        kinds = (".csv", ".jsonl") if texts else (".jsonl",)
        if out.suffix.lower() not in kinds:
            raise SourceError(
                f"{out}: some images of {self.path} are written as {' or '.join(kinds)}. Choose "
                "such a name."
            )
        self.check_is_other(out)
        check_place(out, is_folder=False, overwrite=overwrite)

    def write(self, records: Sequence[Placed], selection: SampleSelection, out: Path) -> None:
        """Writes columns, paths from the new table's folder on, and the scores."""
        kept, (name, values) = _some(selection, self), _score(selection)
        moved = out.resolve().parent != self.path.parent.resolve()
        rows = [
            {**records[i][1], name: plain(values[i])}
            | ({self.column: self._from(out, records[i][1][self.column])} if moved else {})
            for i in kept
        ]
        with whole(out) as part:
            _write_table(rows, part)

    def _from(self, out: Path, name: str) -> str:
        """The path of an image as a table elsewhere has it."""
        if Path(name).is_absolute():
            return name
        return os.path.relpath(self.path.parent.resolve() / name, out.resolve().parent)


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Images as arrays, in one file.

    Attributes:
        path: of the file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def records(self) -> Sequence[Placed]:
        """Reads what stands beside the images."""
        from pydvl_datainf.huggingface.images import read_arrays  # with torch

        return read_arrays(self.path)[0]

    def check_is_other(self, out: Path) -> None:
        """Refuses the file itself."""
        check_is_other(self.path, out)

    def check_writable(self, out: Path, *, overwrite: bool) -> None:
        """Takes a file of arrays."""
        if out.suffix != ".npz":
            raise SourceError(f"{out}: some arrays of {self.path} are written as .npz.")
        self.check_is_other(out)
        check_place(out, is_folder=False, overwrite=overwrite)

    def write(self, records: Sequence[Placed], selection: SampleSelection, out: Path) -> None:
        """Writes each array in part, and the scores beside them."""
        kept, (name, values) = _some(selection, self), _score(selection)
        with np.load(self.path, allow_pickle=False) as file:
            arrays = {what: file[what][kept] for what in file.files}
        with whole(out) as part:
            np.savez(part, **{**arrays, name: values[kept]})


def _some(selection: SampleSelection, source: TrainingSource) -> list[int]:
    """The positions of the samples that are kept."""
    if not len(selection.kept):
        raise SourceError(f"No sample is left of {source}. Keep more.")
    positions: list[int] = selection.kept.tolist()
    return positions


def _score(selection: SampleSelection) -> tuple[str, Any]:
    """The column of scores; one of that name, of an earlier selection, is replaced."""
    return selection.measure.replace(" ", "_"), selection.values


def _write_table(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Writes records as JSON lines or CSV."""
    try:
        text = written(rows, "csv" if out.suffix.lower() == ".csv" else "jsonl")
    except TypeError as error:
        raise SourceError(
            f"JSON cannot hold these samples: {error}. Choose a name ending in .parquet, or a "
            "folder."
        ) from error
    out.write_text(text, encoding="utf-8", newline="")
