"""What a store holds: a Zarr v3 group, format 2, specified in docs/store-format.md; read only.

A chunk is the unit of work and of writing: it appears at once and whole, and carries a checksum.
What was done is what is there and sound; there is no other book-keeping.
"""

import re
import warnings
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import LocalStore, MemoryStore

from pydvl_datainf.errors import StoreError
from pydvl_datainf.results.arrays import WORK, Array, Layout, is_compressed
from pydvl_datainf.results.chunk_files import is_plain, only_chunk, read_chunk, read_rows
from pydvl_datainf.results.chunks import (
    FREE,
    NAMED,
    Chunk,
    Selection,
    guarded,
    key_of,
    lacking,
    selection_of,
)
from pydvl_datainf.results.locking import is_locked, lock_of
from pydvl_datainf.results.places import as_location

FORMAT = "pydvl-datainf influences"
FORMAT_VERSION = 2
METADATA = ("test_", "train_")
"""How the names of the caller's columns begin; only these may hold NaN."""

REPAIR = (
    " Call {} again with the same arguments: what is damaged or missing is made again, and nothing "
    "else is computed."
)
FEW = 1000
"""Chunks that are read without looking first whether there are so many."""


class Stored:
    """One Zarr group that holds one run, to be read.

    Args:
        location: a path, a URL that fsspec knows, or a Zarr store.
    """

    mode = "r"
    """In which Zarr opens groups and arrays."""

    def __init__(self, location: Any):
        known = isinstance(location, Stored)
        self.location = location.location if known else as_location(location)
        self.layouts: Mapping[str, Layout] = {}  # as far as known, arrays must look like these
        self.checksum: str | None = None  # of the run that is read, where one is
        self.maker = "run_influences"  # what is called to make the run, and to mend it
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._counts: dict[str, int] = {}

    # The group

    @property
    def path(self) -> Path | None:
        """The folder, where the store is one."""
        if isinstance(self.location, LocalStore):
            return self.location.root
        local = isinstance(self.location, str) and "://" not in self.location
        return Path(self.location) if local else None

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what this one writes."""
        text = str(self.location)
        return not isinstance(self.location, MemoryStore) and not text.startswith("memory:")

    def __str__(self) -> str:
        return str(self.path or self.location)

    @property
    def repair(self) -> str:
        """What to do about damage, as the end of a message."""
        return REPAIR.format(self.maker)

    @property
    def group(self) -> zarr.Group:
        """The group, as it is now.

        Raises:
            StoreError: if there is none, it is damaged, or it is read-only and is to be written.
        """
        if self.path is not None and not self.path.is_dir():
            raise StoreError(f"There is no store at {self}.")
        try:
            # Never consolidated metadata: they would hide what was written after them.
            return zarr.open_group(self.location, mode=cast(Any, self.mode), use_consolidated=False)
        except (GroupNotFoundError, ContainsArrayError, FileNotFoundError) as error:
            raise StoreError(f"{self} holds no Zarr group.") from error
        except Exception as error:  # damaged metadata raise anything
            if isinstance(error, ImportError | OSError):  # of protocols and networks
                raise
            if "read-only" in str(error):
                raise StoreError(f"{self} is read-only.") from error
            raise StoreError(
                f"{self} cannot be opened: {error}. If it is a run, its zarr.json is damaged: put "
                "back a copy of that file, or delete the whole store and make the run anew."
            ) from error

    @cached_property
    def _files(self) -> ZarrStore:
        """What Zarr reads from and writes to."""
        return self.group.store

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the group.

        Raises:
            StoreError: if there is no run here, or one of another format.
        """
        attributes: Any = self.group.attrs.asdict()
        if type(attributes) is not dict or attributes.get("format") != FORMAT:
            raise StoreError(f"{self} is a Zarr group, but not a run of this package.")
        if attributes.get("format_version") != FORMAT_VERSION:
            versions = attributes.get("versions")
            writer = versions.get("pydvl-datainf") if type(versions) is dict else None
            raise StoreError(
                f"{self} has format version {attributes.get('format_version')}; this version of "
                f"the package reads {FORMAT_VERSION}. Install the version that wrote it "
                f"({writer or 'unknown'}), or delete it and make the run anew."
            )
        return dict(attributes)

    def holds(self, other: "Stored") -> bool:
        """Whether another store, which exists, is at this place or within it, by whatever name."""
        if self.path is None or other.path is None:
            return f"{other}/".startswith(f"{str(self).rstrip('/')}/")
        inner = other.path.resolve()
        return self.path.exists() and any(map(self.path.samefile, (inner, *inner.parents)))

    def _metadata(self) -> bytes:
        if self.path is not None:  # without Zarr's detour through its own thread
            file = self.path / "zarr.json"
            return file.read_bytes() if file.is_file() else b""
        found = sync(self._files.get("zarr.json", default_buffer_prototype()))
        return b"" if found is None else found.to_bytes()

    def is_at_work(self) -> bool:
        """Whether another call writes here now; False also where that cannot be known."""
        return self.path is not None and is_locked(lock_of(self.path))

    def to_go_on(self) -> str:
        """What to do about a run that is not complete, in a sentence."""
        if self.is_at_work():
            return "Another call is at work on it: wait until that has ended."
        return f"Call {self.maker} again with the same arguments to go on."

    def check_same_run(self) -> None:
        """Refuses to go on where the run that was opened is no longer.

        Raises:
            StoreError: if another one has taken its place, or it is gone.
        """
        # Searched, as when writing.
        if self.checksum is not None and self.checksum.encode() not in self._metadata():
            raise StoreError(
                f"The run in {self} was replaced, or deleted, after it was opened. Open the one "
                "that is there now, with InfluenceRun.open."
            )

    # Arrays

    def array(self, name: str) -> "zarr.Array[Any]":
        """An array, opened once.

        Args:
            name: its path in the group.

        Returns:
            The array.

        Raises:
            StoreError: if there is none, or its metadata are damaged or not those of the run.
        """
        if name not in self._arrays:
            if name not in self:
                raise StoreError(f"{self} has no array '{name}'.{self.repair}")
            array = self._as_described(name)
            layout = self.layouts.get(name)
            if layout is not None and not layout.is_that_of(name, array):
                raise StoreError(
                    f"The array '{name}' in {self} is not laid out as its run says: {array.shape} "
                    f"in chunks of {array.chunks}, {array.dtype}.{self.repair}"
                )
            if is_compressed(name):
                array = self._opened(guarded(self._files, array), name)
            self._arrays[name] = array
        return self._arrays[name]

    def attributes_of(self, name: str) -> dict[str, Any]:
        """The attributes of an array as they are now, since another process may write them."""
        self.array(name)
        attributes: dict[str, Any] = self._as_described(name).attrs.asdict()
        return attributes

    def _as_described(self, name: str) -> "zarr.Array[Any]":
        try:
            return self._opened(self._files, name)
        except Exception as error:  # damaged metadata raise anything
            raise StoreError(
                f"The metadata of the array '{name}' in {self} are damaged: {error}.{self.repair}"
            ) from error

    def _opened(self, files: ZarrStore, name: str) -> "zarr.Array[Any]":
        # Otherwise a chunk that equals the fill value would not be written.
        with warnings.catch_warnings(), zarr.config.set({"array.write_empty_chunks": True}):
            warnings.simplefilter("ignore")  # of data types that only damage can name
            return zarr.open_array(files, path=name, mode=cast(Any, self.mode), zarr_format=3)

    def not_as_consolidated(self, names: Iterable[str]) -> list[str]:
        """The arrays of which other programs, which read consolidated metadata, read another thing.

        Args:
            names: of the arrays.

        Returns:
            Names of those whose consolidated metadata are missing or say something else.
        """
        try:
            group = zarr.open_group(self._files, mode="r", use_consolidated=True)
        except Exception:  # damaged metadata raise anything
            return list(names)
        return [name for name in names if not self._is_consolidated(name, group)]

    def _is_consolidated(self, name: str, group: zarr.Group) -> bool:
        own = self._as_described(name).metadata.to_dict()
        try:
            return cast("zarr.Array[Any]", group[name]).metadata.to_dict() == own
        except Exception:
            return False

    def names(self) -> list[str]:
        """The names of all that is there but intermediate results, whether it is an array or not.

        Returns:
            Names, sorted.
        """
        return sorted({key.partition("/")[0] for key in _listed(self._files.list_dir(""))} - {WORK})

    def __contains__(self, name: str) -> bool:
        return self._exists(f"{name}/zarr.json")

    def _exists(self, key: str) -> bool:
        if type(self._files) is LocalStore:  # without Zarr's detour through its own thread
            return (self._files.root / key).is_file()
        return sync(self._files.exists(key))

    # Reading

    def read(self, name: str, where: Any = ...) -> Array:
        """Reads an array or a part of it, whose chunks must all be there and sound.

        Args:
            name: of the array.
            where: an index of slices along each dimension.

        Returns:
            The values.

        Raises:
            StoreError: if a chunk is missing or damaged; names it. Or if there is another run now.
        """
        try:
            return self._read(name, where)
        finally:  # afterwards, since a run can be replaced while it is read
            self.check_same_run()

    def read_into(self, memory: Array, name: str, rows: slice) -> Array:
        """Reads rows of an array, into memory that is there if they lie in files as in memory.

        Args:
            memory: for that many rows.
            name: of the array.
            rows: from which to which.

        Returns:
            The values: `memory`, or an array of its own.

        Raises:
            StoreError: as `read` does.
        """
        if not self._is_plain(name) or not read_rows(
            self._folder(name), self.array(name), rows, memory
        ):
            return self.read(name, rows)  # which tells what is wrong, if anything is
        self.check_same_run()
        return memory

    def _is_plain(self, name: str) -> bool:
        """Whether an array is in files here, as its numbers are in memory."""
        return type(self._files) is LocalStore and is_plain(self.array(name))

    def _only_chunk(self, name: str, chosen: Selection) -> Chunk | None:
        """The plain chunk that a selection is, if it is one."""
        _, sizes, chunks = zip(*chosen, strict=True) if chosen else ((), (), ())
        return only_chunk(self.array(name), sizes, chunks) if self._is_plain(name) else None

    def _folder(self, name: str) -> Path:
        assert self.path is not None  # for arrays in files
        return self.path / name

    def _read(self, name: str, where: Any) -> Array:
        array = self.array(name)
        chosen = selection_of(array, where)
        chunk = self._only_chunk(name, chosen)
        whole = None if chunk is None else read_chunk(self._folder(name), array, chunk)
        if whole is not None:
            inner = (slice(size) if isinstance(at, slice) else 0 for at, size, _ in chosen)
            return np.asarray(whole[tuple(inner)])
        touched = [chunks for _, _, chunks in chosen]
        self._check_count(name, touched)
        rows = self._neighbouring_rows(name, chosen)
        if rows is not None:
            return rows
        try:
            values = np.asarray(array[where])
        except Exception as error:  # a checksum, a codec or the file system
            there = set(product(*touched)) & self.present(name)
            broken = [chunk for chunk in there if not self._is_sound(name, chunk)]
            if not broken:
                self._check_present(name, touched)  # a link in a circle is not there, yet no gap
                raise
            raise self._damaged(_keys_of(name, broken), len(broken)) from error
        if not np.issubdtype(values.dtype, np.floating) or _has_nan(values):
            self._check_present(name, touched)
        return values

    def _neighbouring_rows(self, name: str, chosen: Selection) -> Array | None:
        """What is selected, if these are whole, plain rows that lie one after the other."""
        array = self.array(name)
        if not chosen or not self._is_plain(name):
            return None
        (at, size, _), *rest = chosen
        is_whole = all(
            isinstance(along, slice) and along.step in (None, 1) and count == length
            for (along, count, _), length in zip(rest, array.shape[1:], strict=True)
        )
        if not isinstance(at, slice) or at.step not in (None, 1) or size < 1 or not is_whole:
            return None
        first = at.indices(array.shape[0])[0]
        memory = np.empty((size, *array.shape[1:]), array.dtype)
        is_read = read_rows(self._folder(name), array, slice(first, first + size), memory)
        return memory if is_read else None

    def _check_count(self, name: str, touched: Sequence[range]) -> None:
        """Metadata can tell of more than anybody could go through, or hold in memory."""
        count, array = prod(map(len, touched)), self.array(name)
        if count <= FEW and count * prod(array.chunks) * array.dtype.itemsize <= FREE:
            return
        if count > self._counts.get(name, 0):
            self._counts[name] = len(self.present(name))
        if count > self._counts[name]:
            self._check_present(name, touched)

    def _check_present(self, name: str, touched: Sequence[range]) -> None:
        first, count = lacking(touched, self.present(name))
        if count:
            raise self._damaged(_keys_of(name, first), count)

    # What is there

    def count(self, name: str) -> int:
        """How many chunks an array has when it is complete."""
        return prod(self.array(name).cdata_shape)

    def expected(self, name: str) -> set[Chunk]:
        """All chunks that an array has when it is complete, of a run that is at work."""
        return set(product(*map(range, self.array(name).cdata_shape)))

    def lacking(self, name: str) -> tuple[list[Chunk], int]:
        """The first chunks of an array that are missing or damaged, and how many are."""
        return lacking([range(c) for c in self.array(name).cdata_shape], self.sound(name))

    def is_whole(self, name: str) -> bool:
        """Whether an array is there, and all of its chunks are sound."""
        return name in self and not self.lacking(name)[1]

    def present(self, name: str) -> set[Chunk]:
        """The chunks of an array that are there, sound or not."""
        # Not what a killed writer left, and not "00".
        pattern = re.compile(re.escape(name) + r"/c((?:/(?:0|[1-9]\d*))+)")
        keys = _listed(self._files.list_prefix(f"{name}/c/"))
        matches = (pattern.fullmatch(key) for key in keys)
        return {tuple(map(int, match[1].split("/")[1:])) for match in matches if match}

    def has(self, name: str, chunk: Chunk) -> bool:
        """Whether one chunk is there, sound or not."""
        return self._exists(key_of(name, chunk))

    def sound(self, name: str) -> set[Chunk]:
        """The chunks of an array that read back through their checksums and are finite."""
        if name not in self:
            return set()
        return {chunk for chunk in self.present(name) if self._is_sound(name, chunk)}

    def check(self, names: Iterable[str]) -> None:
        """Reads every chunk of some arrays.

        Args:
            names: of the arrays.

        Raises:
            StoreError: if any is missing or damaged; names them.
        """
        keys: list[str] = []
        total = 0
        for name in names:
            first, count = self.lacking(name)
            keys, total = keys + _keys_of(name, first), total + count
        self.check_same_run()
        if total:
            raise self._damaged(keys, total)

    def check_present(self, name: str) -> None:
        """Looks for every chunk of an array, and reads none.

        Args:
            name: of the array.

        Raises:
            StoreError: if there is no such array, or chunks are missing; names them.
        """
        self._check_present(name, [range(count) for count in self.array(name).cdata_shape])

    def _is_sound(self, name: str, chunk: Chunk) -> bool:
        try:
            values = np.asarray(self.array(name).get_block_selection(chunk))
        except Exception:  # damaged files raise anything, from ValueError to MemoryError
            return False
        computed = np.issubdtype(values.dtype, np.floating) and not name.startswith(METADATA)
        return not computed or bool(np.isfinite(values).all())

    def _damaged(self, keys: Sequence[str], total: int) -> StoreError:
        more = total - len(keys[:NAMED])
        some = ", ".join(keys[:NAMED]) + (f" and {more:,} more" if more else "")
        return StoreError(
            f"{self} has {total:,} missing or damaged chunks: {some}. Call {self.maker} again "
            "with the same arguments, which recomputes just these."
        )


def _keys_of(name: str, chunks: Iterable[Chunk]) -> list[str]:
    return [key_of(name, chunk) for chunk in sorted(chunks)]


def _has_nan(values: Array) -> bool:
    """Whether an entry may be NaN; a sum, which then is, is faster than looking at each."""
    if values.dtype == np.float16:  # where NumPy is slow; whoever reads rows has torch loaded
        import torch

        return bool(torch.from_numpy(np.ascontiguousarray(values)).sum().isnan())
    with np.errstate(all="ignore"):
        return bool(np.isnan(values.sum()))


def _listed(keys: AsyncIterator[str]) -> list[str]:
    async def listed() -> list[str]:
        return [key async for key in keys]

    return sync(listed())
