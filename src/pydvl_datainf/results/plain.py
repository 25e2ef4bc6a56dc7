"""Rows that lie in files as they do in memory: numbers one after the other, and their checksum.

Zarr hands each chunk through its event loop and copies it several times on its way. Here it goes
from a file into memory that is there already, or from there into a file, and is the same to Zarr.
"""

import uuid
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from zarr.codecs import BytesCodec, Crc32cCodec

from pydvl_datainf.results.arrays import Array

CHECKSUM = 4
"""Bytes of a CRC-32C, which follows the numbers of a chunk."""


def is_plain(array: Any) -> bool:
    """Whether the chunks of an array are whole rows, as they are in this machine's memory.

    Args:
        array: of Zarr.

    Returns:
        False where numbers are compressed or in another order of bytes, or rows are cut.
    """
    is_cut = array.ndim == 0 or array.chunks[1:] != array.shape[1:]
    return not is_cut and array.metadata.codecs == (BytesCodec(), Crc32cCodec())


def read_rows(folder: Path, array: Any, rows: slice, into: Array) -> bool:
    """Reads neighbouring rows.

    Args:
        folder: of the array.
        array: of Zarr, which is plain.
        rows: from which to which.
        into: where to, rows of the array's.

    Returns:
        False where they are not those of the array, or a chunk is missing or damaged; what is in
        `into` is of no use then.
    """
    if not _fits(into, array, rows):
        return False
    length, done = array.chunks[0], 0
    while done < len(into):
        j, skipped = divmod(rows.start + done, length)
        part = into[done : done + length - skipped]
        if not _read(_file(folder, array, j), part, skipped, length):
            return False
        done += len(part)
    return True


def write_chunk(folder: Path, array: Any, rows: slice, values: Array) -> bool:
    """Writes the rows of one chunk, which appears at once and whole.

    Args:
        folder: of the array.
        array: of Zarr, which is plain.
        rows: from which to which.
        values: of these rows.

    Returns:
        False, with nothing written, where they are not all rows of one chunk, or not contiguous.
    """
    length = array.chunks[0]
    j, skipped = divmod(rows.start, length)
    is_whole = rows.stop == min(rows.start + length, array.shape[0])
    if skipped or not is_whole or not _fits(values, array, rows):
        return False
    padding = np.full((length - len(values), *values.shape[1:]), array.fill_value, values.dtype)
    checksum = google_crc32c.extend(google_crc32c.value(values), padding)
    _write(_file(folder, array, j), values, padding, checksum.to_bytes(CHECKSUM, "little"))
    return True


def _fits(values: Array, array: Any, rows: slice) -> bool:
    shape = rows.stop - rows.start, *array.shape[1:]
    return values.shape == shape and values.dtype == array.dtype and values.flags.c_contiguous


def _file(folder: Path, array: Any, j: int) -> Path:
    key: str = array.metadata.encode_chunk_key((j, *[0] * (array.ndim - 1)))
    return folder / key


def _read(file: Path, into: Array, skipped: int, length: int) -> bool:
    """Reads rows of a chunk of so many, but for those that are skipped; all for the checksum."""
    row = into.nbytes // len(into)
    after = (length - skipped - len(into)) * row
    try:
        with file.open("rb") as stream:
            before = stream.read(skipped * row)
            stream.readinto(into.data)
            rest = stream.read(after + CHECKSUM + 1)
    except OSError:
        return False
    if len(rest) != after + CHECKSUM:
        return False
    checksum = google_crc32c.extend(google_crc32c.value(before), into)
    return bool(
        google_crc32c.extend(checksum, rest[:after]) == int.from_bytes(rest[after:], "little")
    )


def _write(file: Path, *parts: Any) -> None:
    """As Zarr does: what a killed writer leaves has another name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            for part in parts:
                stream.write(part)
        partial.replace(file)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
