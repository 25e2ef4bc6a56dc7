"""Chunks of an array: which an index chooses, which are missing, which would expand too far."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import prod
from typing import Any

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, Store
from zarr.storage import WrapperStore

Chunk = tuple[int, ...]

NAMED = 10
"""Chunks that a message names, at most."""

MAGIC = bytes.fromhex("28b52ffd")
HEADER = 18
"""Bytes of the header of a zstd frame, at most."""

FREE = 2**28
"""Bytes to which any chunk may expand."""

RATIO = 1024
"""By how much a chunk that becomes larger than that may expand: texts and numbers do not."""


class ChunkGuard(WrapperStore[Store]):
    """Reads compressed chunks of one array; without it a few kilobytes could fill the memory.

    Args:
        store: that holds the chunks.
        nbytes: of an expanded chunk; None where it is not fixed, as for strings.
    """

    def __init__(self, store: Store, nbytes: int | None = None):
        super().__init__(store)
        self.nbytes = nbytes

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the store gives it.

        Args:
            key: of a chunk, or of metadata.
            prototype: of the buffer.
            byte_range: which part.

        Returns:
            The bytes, or None where there are none.

        Raises:
            ValueError: if they would expand to another size than that of a chunk, or too far.
        """
        value = await super().get(key, prototype, byte_range)
        if value is None or key.endswith("zarr.json"):
            return value
        size = expanded_size(value[:HEADER].to_bytes())
        if size is None or self.nbytes not in (None, size):
            raise ValueError(f"{key} expands to {size} bytes; expected {self.nbytes}.")
        if size > max(FREE, RATIO * len(value)):
            raise ValueError(f"{key}, {len(value):,} bytes, would expand to {size:,}.")
        return value

    def with_read_only(self, read_only: bool = False) -> "ChunkGuard":
        """The same store, read-only or not."""
        return ChunkGuard(self._store.with_read_only(read_only), self.nbytes)


def guarded(store: Store, array: Any) -> ChunkGuard:
    """The store of an array whose chunks are compressed.

    Args:
        store: that holds the array.
        array: in it.

    Returns:
        A store for reading it.
    """
    varies = array.dtype.kind not in "iufb"
    return ChunkGuard(store, None if varies else array.dtype.itemsize * prod(array.chunks))


def expanded_size(header: bytes) -> int | None:
    """To how many bytes a zstd frame says that it expands (RFC 8878, 3.1.1.1).

    Args:
        header: the first bytes of the frame.

    Returns:
        The size, which decoders reserve; None where it is not told, or this is no frame.
    """
    if header[:4] != MAGIC or len(header) < 6:
        return None
    kind, single, dictionary = header[4] >> 6, header[4] >> 5 & 1, header[4] & 3
    start = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    length = (single, 2, 4, 8)[kind]
    if not length or len(header) < start + length:
        return None
    return int.from_bytes(header[start : start + length], "little") + 256 * (kind == 1)


def key_of(name: str, chunk: Chunk) -> str:
    """The key of a chunk of an array in the store of its group."""
    return f"{name}/c/{'/'.join(map(str, chunk))}"


Selection = list[tuple[Any, int, range]]
"""Along each axis the number or slice, how much of it that is, and in which chunks."""


def selection_of(array: Any, where: Any) -> Selection:
    """Which chunks of an array an index chooses.

    Args:
        array: of Zarr.
        where: numbers and slices along the axes, and perhaps an ellipsis.

    Returns:
        That, for every axis.
    """
    given = where if isinstance(where, tuple) else (where,)
    first = given.index(...) if ... in given else len(given)
    rest = given[first + 1 :]
    along = given[:first] + (slice(None),) * (array.ndim - first - len(rest)) + rest
    chosen = []
    for at, size, chunk in zip(along, array.shape, array.chunks, strict=True):
        if isinstance(at, slice):
            start, stop, step = at.indices(size)
            count = len(range(start, stop, step))
        else:
            start = at + size if at < 0 else at
            stop, count = min(start + 1, size), int(0 <= start < size)
        touched = range(start // chunk, -(-stop // chunk)) if count else range(0)
        chosen.append((at, count, touched))
    return chosen


def lacking(grid: Sequence[range], there: set[Chunk]) -> tuple[list[Chunk], int]:
    """Which chunks of a grid are missing, without going through all of it.

    Args:
        grid: the chunks along each axis.
        there: those that are not missing.

    Returns:
        The first of the others, and how many others there are.
    """
    own = (chunk for chunk in there if len(chunk) == len(grid))
    count = prod(map(len, grid)) - sum(all(map(range.__contains__, grid, c)) for c in own)
    missing = (chunk for chunk in _all_of(grid) if chunk not in there)
    return list(islice(missing, min(count, NAMED))), count


def _all_of(grid: Sequence[range]) -> Iterator[Chunk]:
    """As itertools.product, which would hold each of the ranges in memory."""
    if not grid:
        yield ()
        return
    for i in grid[0]:
        for rest in _all_of(grid[1:]):
            yield i, *rest
