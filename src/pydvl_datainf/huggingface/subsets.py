"""Some samples of a file in a file of the same kind, each record as it was."""

import codecs
import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from pydvl_datainf.errors import OutputExistsError, SourceError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.records import Placed, kind_of

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""By name a value for each sample that is written."""

Writer: TypeAlias = Callable[[Path, Sequence[Placed], Sequence[int], Columns, Path], None]


def write_subset(
    source: Path,
    records: Sequence[Placed],
    positions: Sequence[int],
    out: Path,
    *,
    added: Columns = MappingProxyType({}),
    quoted: bool = True,
    overwrite: bool = False,
) -> None:
    """Writes some samples of a file, in its format and, where that is text, byte by byte.

    Args:
        source: what `read_records` reads; it is read once more.
        records: what `read_records` made of it.
        positions: of the samples, in the order in which they are written.
        out: of the same kind as the source, by its name; there whole in the end or not at all.
        added: columns behind those of the samples, none of which is called as one of these.
        quoted: as `read_records` was told.
        overwrite: replace what is there; never the source.

    Raises:
        OutputExistsError: if something is there that is not replaced.
        SourceError: if the name is that of another kind, or what is added cannot stand in a file
            without quotes.
    """
    check_writable(source, out, overwrite=overwrite)
    writers = _WRITERS if quoted else {**_WRITERS, **_UNQUOTED}
    with whole(out) as part:
        writers[kind_of(source)](source, records, positions, added, part)


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A place for what is to be at another in the end, whole or not at all.

    Args:
        out: file or folder to be written; what is there is replaced.

    Yields:
        Where to write it.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        yield part
        if out.is_dir():
            shutil.rmtree(out)
        part.replace(out)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        raise


def check_writable(source: Path, out: Path, *, overwrite: bool) -> None:
    """Checks early that `write_subset` may write to a place.

    Args:
        source: file of the samples.
        out: where some of them go.
        overwrite: replace what is there.

    Raises:
        OutputExistsError: if something is there that is not replaced.
        SourceError: if the samples cannot be read, or the name is that of another kind.
    """
    kind, named = kind_of(source), out.suffix.lower()
    if named != kind if kind != "folder" else named in _WRITERS:
        called = "a name without such an ending" if kind == "folder" else f"a name ending in {kind}"
        raise SourceError(f"{out} would be of another kind than {source}: choose {called}.")
    check_is_other(source, out)
    check_place(out, is_folder=kind == "folder", overwrite=overwrite)


def check_place(out: Path, *, is_folder: bool, overwrite: bool) -> None:
    """Checks that nothing is there, or only what may be replaced.

    Args:
        out: to be written.
        is_folder: whether it will be a folder that `datasets` saves, or a file.
        overwrite: replace what is there.

    Raises:
        OutputExistsError: if something is there that is not replaced.
    """
    check_absent(out, overwrite=overwrite)
    if out.exists() and out.is_dir() != is_folder:
        kinds = ("a file", "a folder")
        raise OutputExistsError(
            f"{out} is {kinds[out.is_dir()]}, and would be {kinds[is_folder]}. Choose another name."
        )
    if out.is_dir() and not all(map(_is_of_datasets, out.iterdir())):
        raise OutputExistsError(
            f"{out} holds other things than a data set that datasets saved, and is not replaced. "
            "Choose another name."
        )


def check_is_other(source: Path, out: Path) -> None:
    """Checks that a place is neither that of the data nor within it.

    Args:
        source: file or folder of the samples.
        out: to be written.

    Raises:
        OutputExistsError: if it is.
    """
    # Files by what they are, since several names may be those of one.
    is_it = out.exists() and out.samefile(source)
    if is_it or source.resolve() in out.resolve().parents:
        raise OutputExistsError(f"{out} is the data itself, which is never replaced.")


def _is_of_datasets(path: Path) -> bool:
    return path.suffix == ".arrow" or path.name in ("state.json", "dataset_info.json")


def check_absent(out: Path, *, overwrite: bool) -> None:
    """Checks that nothing is there, or that it may be replaced.

    Args:
        out: to be written.
        overwrite: replace what is there.

    Raises:
        OutputExistsError: if it is not.
    """
    if not overwrite and (out.exists() or out.is_symlink()):
        raise OutputExistsError(
            f"{out} is there. Choose another name, or replace it with overwrite=True."
        )


def _lines(path: Path) -> list[str]:
    """Lines with the ends that they have, counted as `read_records` counts them."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(file)
    if lines and not lines[-1].endswith(("\r", "\n")):
        first = lines[0]
        lines[-1] += first[len(first.rstrip("\r\n")) :] or "\n"
    return lines


def _write_lines(source: Path, out: Path, lines: Sequence[str]) -> None:
    with source.open("rb") as file:
        encoding = "utf-8-sig" if file.read(3) == codecs.BOM_UTF8 else "utf-8"
    with out.open("w", encoding=encoding, newline="") as file:
        file.writelines(lines)


def _json_lines(
    source: Path, records: Sequence[Placed], positions: Sequence[int], added: Columns, out: Path
) -> None:
    lines = _lines(source)
    chosen = [lines[records[i][0].number - 1] for i in positions]
    if added:
        fields = [json.dumps(row)[1:] for row in rows_of(added, len(positions))]
        fields = [
            f"{', ' if records[i][1] else ''}{field}"
            for i, field in zip(positions, fields, strict=True)
        ]
        chosen = [
            _inserted(line.rstrip().removesuffix("}"), field, line)
            for line, field in zip(chosen, fields, strict=True)
        ]
    _write_lines(source, out, chosen)


def _inserted(kept: str, more: str, line: str) -> str:
    """What is kept of a line, more, and the end that the line has."""
    return kept + more + line[len(line.rstrip("\r\n")) :]


def _separated(separator: str, quoted: bool = True) -> Writer:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE

    def write(
        source: Path, records: Sequence[Placed], positions: Sequence[int], added: Columns, out: Path
    ) -> None:
        lines = _lines(source)
        text = io.StringIO("".join(lines), newline="")
        header = csv.DictReader(text, delimiter=separator, quoting=quoting)
        header.fieldnames  # noqa: B018 - reads up to the end of the header
        # A place is that of a record's last line; between records there may be empty ones.
        ends = [header.line_num, *(place.number for place, _ in records)]
        texts = ["".join(lines[ends[i] : ends[i + 1]]).lstrip("\r\n") for i in positions]
        texts = ["".join(lines[: ends[0]]), *texts]
        if added:
            rows = [list(added), *(row.values() for row in rows_of(added, len(positions)))]
            texts = [
                _inserted(text.rstrip("\r\n"), separator + cells(row), text)
                for text, row in zip(texts, rows, strict=True)
            ]
        _write_lines(source, out, texts)

    def cells(row: Iterable[Any]) -> str:
        text = io.StringIO(newline="")
        quote = '"' if quoted else None  # without quoting it is a character as others
        table = csv.writer(text, delimiter=separator, quoting=quoting, quotechar=quote)
        try:
            table.writerow(row)
        except csv.Error as error:
            raise SourceError(
                f"Without quotes {separator!r} and line breaks cannot stand in {list(row)}, which "
                "is to be written beside samples."
            ) from error
        return text.getvalue().removesuffix("\r\n")

    return write


def rows_of(columns: Columns, count: int) -> list[dict[str, Any]]:
    """Columns as rows.

    Args:
        columns: of so many values each.
        count: how many.

    Returns:
        By name the values of each row.
    """
    return [{name: values[i] for name, values in columns.items()} for i in range(count)]


def _parquet(
    source: Path, records: Sequence[Placed], positions: Sequence[int], added: Columns, out: Path
) -> None:
    arrow, parquet = imported("pyarrow"), imported("pyarrow.parquet")
    table = parquet.read_table(source)
    try:
        chosen = table.take(arrow.array(positions, arrow.int64()))
    except arrow.ArrowNotImplementedError:  # views of texts, for instance
        chosen = arrow.concat_tables([table.slice(i, 1) for i in positions])
    for name, values in added.items():
        chosen = chosen.append_column(name, arrow.array(values))
    parquet.write_table(chosen, out)


def _datasets_folder(
    source: Path, records: Sequence[Placed], positions: Sequence[int], added: Columns, out: Path
) -> None:
    with without_bars() as datasets:
        chosen = datasets.load_from_disk(str(source)).select(list(positions))
        with_columns(chosen, added).save_to_disk(str(out))


def with_columns(data: Any, added: Columns) -> Any:
    """Adds columns to a data set.

    Args:
        data: of `datasets`.
        added: a value for each sample.

    Returns:
        Another data set.
    """
    for name, values in added.items():
        data = data.add_column(name, list(values))
    return data


@contextmanager
def without_bars() -> Iterator[Any]:
    """Lets `datasets` draw no bars.

    Yields:
        The module.
    """
    datasets = imported("datasets")
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        if bars:
            datasets.enable_progress_bars()


_WRITERS: Mapping[str, Writer] = {
    ".jsonl": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    "folder": _datasets_folder,
}
_UNQUOTED: Mapping[str, Writer] = {
    ".csv": _separated(",", quoted=False),
    ".tsv": _separated("\t", quoted=False),
}
