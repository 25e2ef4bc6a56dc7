"""Uncompressed chunks of numbers (rows, bases) as files, with a checksum; Zarr does the others.

Zarr hands each chunk through its event loop and copies it several times on its way, which takes
longer than the file system. Here it goes straight from a file into memory, or from there into a
file, which has the same bytes as Zarr would write.
"""

import uuid
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from zarr.codecs import BytesCodec, Crc32cCodec

from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.chunks import Chunk

CHECKSUM = 4
"""Bytes of a CRC-32C, which follows the numbers of a chunk."""


def is_plain(array: Any) -> bool:
    """Whether the chunks of an array are numbers as they are in this machine's memory.

    Args:
        array: of Zarr.

    Returns:
        False where they are compressed, in another order of bytes, or without checksums.
    """
    codecs: tuple[Any, ...] = array.metadata.codecs
    return bool(array.shape) and codecs == (BytesCodec(), Crc32cCodec())


def read_rows(folder: Path, array: Any, rows: slice, into: Array) -> bool:
    """Reads neighbouring rows of an array whose chunks are whole rows.

    Args:
        folder: of the array.
        array: of Zarr, which is plain.
        rows: from which to which.
        into: where to, of as many rows of the array's.

    Returns:
        False where they are not those of the array, or a chunk is missing or damaged; what is in
        `into` is of no use then.
    """
    shape = rows.stop - rows.start, *array.shape[1:]
    fits = into.shape == shape and into.dtype == array.dtype and into.flags.c_contiguous
    if not fits or array.chunks[1:] != array.shape[1:]:
        return False
    length, done = array.chunks[0], 0
    while done < len(into):
        j, skipped = divmod(rows.start + done, length)
        part = into[done : done + length - skipped]
        before = skipped * (part.nbytes // len(part))
        if not _read(_file(folder, array, (j, *[0] * (array.ndim - 1))), array, part, before):
            return False
        done += len(part)
    return True


def read_chunk(folder: Path, array: Any, chunk: Chunk) -> Array | None:
    """Reads one chunk.

    Args:
        folder: of the array.
        array: of Zarr, which is plain.
        chunk: which.

    Returns:
        All of it, beyond the end of the array too; None where it is missing or damaged.
    """
    file = _file(folder, array, chunk)
    if not file.is_file() or file.stat().st_size != _nbytes(array) + CHECKSUM:
        return None  # before there is memory for what metadata tell
    values = np.empty(array.chunks, array.dtype)
    return values if _read(file, array, values) else None


def write_chunk(folder: Path, array: Any, chunk: Chunk, values: Array) -> None:
    """Writes one chunk, which appears at once and whole.

    Args:
        folder: of the array.
        array: of Zarr, which is plain.
        chunk: which.
        values: all of it that is in the array.
    """
    whole = np.ascontiguousarray(values, array.dtype)
    if values.shape != array.chunks:
        whole = np.full(array.chunks, array.fill_value, array.dtype)
        whole[tuple(map(slice, values.shape))] = values
    checksum = google_crc32c.value(whole).to_bytes(CHECKSUM, "little")
    _write(_file(folder, array, chunk), whole, checksum)


def only_chunk(array: Any, sizes: Sequence[int], chunks: Sequence[range]) -> Chunk | None:
    """The chunk that a selection is.

    Args:
        array: of Zarr.
        sizes: how much is chosen along each axis.
        chunks: from which that is.

    Returns:
        Which one; None where it is not one, or not all of it.
    """
    if any(len(along) != 1 for along in chunks):
        return None
    chunk = tuple(along.start for along in chunks)
    sides = zip(array.shape, array.chunks, chunk, strict=True)
    whole = [min(side, length - j * side) for length, side, j in sides]
    return chunk if whole == list(sizes) else None


def _nbytes(array: Any) -> int:
    return int(prod(array.chunks) * array.dtype.itemsize)


def _file(folder: Path, array: Any, chunk: Chunk) -> Path:
    key: str = array.metadata.encode_chunk_key(chunk)
    return folder / key


def _read(file: Path, array: Any, into: Array, before: int = 0) -> bool:
    """Reads a part of a chunk, before which there are so many bytes; all, for the checksum."""
    after = _nbytes(array) - before - into.nbytes
    try:
        with file.open("rb") as stream:
            first = stream.read(before)
            stream.readinto(into.data)
            rest = stream.read(after + CHECKSUM + 1)
    except OSError:
        return False
    if len(rest) != after + CHECKSUM:
        return False
    computed = google_crc32c.extend(google_crc32c.value(first), into)
    computed = google_crc32c.extend(computed, rest[:after])
    return bool(computed == int.from_bytes(rest[after:], "little"))


def _write(file: Path, values: Array, checksum: bytes) -> None:
    """As Zarr does: what a killed writer leaves has another name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(values.data)
            stream.write(checksum)
        partial.replace(file)
    except Exception:
        partial.unlink(missing_ok=True)
        raise
