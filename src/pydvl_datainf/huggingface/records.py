"""Samples as they are stored: JSON lines, CSV, Parquet, or a folder of `datasets`."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.folders import absence

Record: TypeAlias = Mapping[str, Any]

LISTS = ("List", "LargeList", "Sequence")
"""What `datasets` calls lists."""

MOST_DIGITS = 30
"""Of whole numbers in files: 64 bits hold 19."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands, for messages.

    Args:
        file: that holds it.
        what: how places in it are called: "line" or "row".
        number: of the line, from 1, or of the row, from 0.
    """

    file: Path
    what: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.what} {self.number}"


Placed: TypeAlias = tuple[Place, Record]


class LabelName(str):
    """A label's name that a file stores as a number; it is never a number of an output itself."""

    __slots__ = ()


def read_records(path: Path, *, quoted: bool = True) -> list[Placed]:
    """Reads all samples of a file or folder.

    Args:
        path: a file named .jsonl (an object on each line), .csv or .tsv (with a header; all values
            are strings), or .parquet, or a folder that `datasets` saved.
        quoted: whether quotes enclose texts in CSV and TSV; otherwise they are characters as
            others.

    Returns:
        For each sample its place and its columns, in the order of the file. Labels that `datasets`
        keeps as numbers of names are the names, and None where there is no label.

    Raises:
        SourceError: if there is no such file, it is of another kind, empty, or cannot be read;
            names the line.
    """
    kind = kind_of(path)
    readers = _READERS if quoted else {**_READERS, **_UNQUOTED}
    try:
        records = list(readers[kind](path))
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not text in UTF-8: {error}.") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    if not records:
        raise SourceError(f"{path} holds no samples.")
    return records


def kind_of(path: Path) -> str:
    """The kind of a file or folder of samples.

    Args:
        path: of samples.

    Returns:
        The ending of its name, or "folder".

    Raises:
        SourceError: if it is not there, or of no kind that can be read.
    """
    try:
        if not path.exists():
            raise SourceError(absence(path, "file or folder"))
        kind = "folder" if path.is_dir() else path.suffix.lower()
        if kind != "folder":
            check_is_file(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    if kind not in _READERS:
        raise SourceError(
            f"{path} is none of the kinds that can be read: "
            f"{', '.join(sorted(suffix for suffix in _READERS if suffix[0] == '.'))}, or a folder "
            "that datasets saved (save_to_disk)."
        )
    return kind


def read_dataset(name: str, config: str | None, split: str) -> list[Placed]:
    """Reads all samples of a data set that `datasets` loads, from the hub or from a folder.

    Args:
        name: on the hub, or of a folder.
        config: which of several; None = the only one.
        split: such as "train" or "train[:1000]".

    Returns:
        As `read_records`; places are rows of the split.

    Raises:
        SourceError: if it cannot be loaded, or is empty.
    """
    loaded = load_split(name, config, split)
    records = list(
        _rows(Path(f"{name} {split}"), loaded.with_format(None), loaded.features.to_dict())
    )
    if not records:
        raise SourceError(f"{split} of {name} holds no samples.")
    return records


def load_split(name: str, config: str | None, split: str) -> Any:
    """Lets `datasets` load a split of a data set.

    Args:
        name: on the hub, or of a folder.
        config: which of several; None = the only one.
        split: such as "train" or "train[:1000]".

    Returns:
        What it loads.

    Raises:
        SourceError: if it cannot be loaded.
    """
    datasets = imported("datasets")
    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # of whatever its files and the network may hold
        raise SourceError(f"datasets does not load {split} of {name}: {error}.") from error


def check_is_file(path: Path) -> None:
    """Checks that a path is that of a file, if anything is there.

    Args:
        path: to be read.

    Raises:
        OSError: if it is a pipe, a device or the like, of which reading may never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file, but a folder, a pipe, a socket or a device")


def _json_lines(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = Place(path, "line", number)
            try:
                record = json.loads(line, object_pairs_hook=_unique, parse_int=_whole)
            except (json.JSONDecodeError, RecursionError) as error:
                raise SourceError(f"{place}: not JSON: {error}.") from error
            except ValueError as error:
                raise SourceError(f"{place}: {error}.") from error
            if not isinstance(record, dict):
                raise SourceError(
                    f'{place}: expected an object such as {{"text": ...}} on each line, got a '
                    f"{type(record).__name__}."
                )
            yield place, record


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits; write it as text")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return record


def _separated(separator: str, quoted: bool = True) -> Callable[[Path], Iterator[Placed]]:
    hint = (
        f"Quote texts that hold {separator!r} or line breaks; where quotes are characters as "
        "others, say in the job quoting: none."
        if quoted
        else f"Without quoting no text can hold {separator!r} or a line break."
    )

    def read(path: Path) -> Iterator[Placed]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            longest = csv.field_size_limit(2**31 - 1)  # for all readers; put back below
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            reader = csv.DictReader(file, delimiter=separator, strict=True, quoting=quoting)
            try:
                _check_header(path, reader)
                for record in reader:
                    place = Place(path, "line", reader.line_num)
                    if None in record or None in record.values():
                        raise SourceError(
                            f"{place}: other columns than in the header "
                            f"({', '.join(reader.fieldnames or ())}). {hint}"
                        )
                    yield place, record
            except csv.Error as error:
                place = Place(path, "line", reader.reader.line_num)
                raise SourceError(f"{place}: {error}. {hint}") from error
            finally:
                csv.field_size_limit(longest)

    return read


def _check_header(path: Path, reader: "csv.DictReader[str]") -> None:
    names = list(reader.fieldnames or ())
    if not names and reader.line_num:
        raise SourceError(
            f"{path}, line 1: it is empty, and the names of the columns stand in the first line. "
            "Take empty lines at the beginning out."
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SourceError(f"{path}, line 1: column '{twice[0]}' stands twice.")


def _parquet(path: Path) -> Iterator[Placed]:
    parquet = imported("pyarrow.parquet")
    try:
        table = parquet.read_table(path)
        rows = table.to_pylist()
    except Exception as error:  # times beyond Python's, text that is none, and so on
        raise SourceError(f"{path} cannot be read as Parquet: {error}.") from error
    told = (table.schema.metadata or {}).get(b"huggingface", b"{}")  # what `datasets` writes
    yield from _rows(path, rows, json.loads(told).get("info", {}).get("features") or {})


def _datasets_folder(path: Path) -> Iterator[Placed]:
    datasets = imported("datasets")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of whatever its files may hold
        raise SourceError(f"{path} is not a folder that datasets saved: {error}.") from error
    if isinstance(loaded, datasets.DatasetDict):
        some = ", ".join(str(path / split) for split in loaded)
        raise SourceError(f"{path} holds several splits. Name one of them: {some}.")
    yield from _rows(path, loaded.with_format(None), loaded.features.to_dict())


def _rows(path: Path, rows: Iterable[Record], features: Mapping[str, Any]) -> Iterator[Placed]:
    """Records of a table, with labels by name."""
    naming = {name: _naming(feature) for name, feature in features.items()}
    for i, row in enumerate(rows):
        named = {name: give(row[name]) for name, give in naming.items() if give and name in row}
        yield Place(path, "row", i), {**row, **named}


def _naming(feature: Any) -> Callable[[Any], Any] | None:
    """What makes names of a column's values, by its type in `datasets`; None = they are none."""
    if isinstance(feature, list):  # a list, as `datasets` below 4 writes it
        feature = {"_type": "List", "feature": feature[0]}
    if feature.get("_type") == "ClassLabel":
        return _names(feature["names"])
    inner = _naming(feature["feature"]) if feature.get("_type") in LISTS else None
    if inner is None:
        return None
    return lambda values: None if values is None else [inner(value) for value in values]


def _names(names: Sequence[str]) -> Callable[[Any], Any]:
    """What makes names of numbers, and None of -1, which stands for no label."""
    numbers = [str(i) for i in range(len(names))]
    # Names such as 0, 1, 2 may be numbers of outputs.
    texts = names if list(names) == numbers else [LabelName(name) for name in names]
    named = dict(enumerate(texts)) | {-1: None}
    return lambda value: named.get(value, value)


_READERS: Mapping[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
    "folder": _datasets_folder,
}
_UNQUOTED: Mapping[str, Callable[[Path], Iterator[Placed]]] = {
    ".csv": _separated(",", quoted=False),
    ".tsv": _separated("\t", quoted=False),
}
