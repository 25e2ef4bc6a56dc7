"""The record of a run on disk: a Zarr v3 group, format 1, specified in docs/store-format.md.

A chunk is the unit of work and of writing: it has one writer, appears at once and whole, and
carries a checksum. What was done is what is there and sound; there is no other book-keeping.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from errno import EDQUOT, ENOSPC
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import LocalStore, MemoryStore, ZipStore

from pydvl_datainf.errors import StoreError, StoreExistsError
from pydvl_datainf.locking import acquire, release, taking_over, writing_in

FORMAT = "pydvl-datainf influences"
FORMAT_VERSION = 1
WORK = "work"
"""The subgroup of intermediate results, deleted when a run is complete."""

DENSE = ("rows", "factors")
"""Noise to a compressor, which would save a few hundredths and halve the speed."""

METADATA = ("test_", "train_")
"""How the names of the caller's columns begin; only these may hold NaN."""

_PARTIAL = re.compile(r"zarr\.[0-9a-f]{32}\.partial")
"""Metadata that a writer was killed at."""

Array = npt.NDArray[Any]
Chunk = tuple[int, ...]


class Store:
    """One Zarr group that holds one run.

    Args:
        location: a path, a URL that fsspec knows, or a Zarr store.
        read_only: refuse to write.
        writer: refuse to write where the attribute `writer` is another one; None = write anyway.
    """

    def __init__(self, location: Any, *, read_only: bool = False, writer: str | None = None):
        self.location = as_location(location)
        self.read_only = read_only
        self.writer = writer
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._zarr: ZarrStore | None = None

    # The group

    @property
    def path(self) -> Path | None:
        """The folder, where the store is one."""
        if isinstance(self.location, LocalStore):
            return self.location.root
        local = isinstance(self.location, str) and "://" not in self.location
        return Path(self.location) if local else None

    def __str__(self) -> str:
        return str(self.path or self.location)

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
            return zarr.open_group(
                self.location, mode="r" if self.read_only else "r+", use_consolidated=False
            )
        except (GroupNotFoundError, ContainsArrayError, FileNotFoundError) as error:
            raise StoreError(f"{self} holds no Zarr group.") from error
        except (ValueError, TypeError) as error:  # Zarr and fsspec have no narrower ones
            if "read-only" in str(error):
                raise StoreError(f"{self} is read-only.") from error
            raise StoreError(f"{self} cannot be opened: {error}.") from error

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of the group.

        Raises:
            StoreError: if there is no run here, or one of another format.
        """
        attributes: dict[str, Any] = self.group.attrs.asdict()
        if attributes.get("format") != FORMAT:
            raise StoreError(f"{self} is a Zarr group, but not a run of this package.")
        if attributes.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{self} has format version {attributes.get('format_version')}; this version of "
                f"the package reads {FORMAT_VERSION}. Install the version that wrote it: "
                f"{attributes.get('versions', {}).get('pydvl-datainf', 'unknown')}."
            )
        return attributes

    def is_vacant(self) -> bool:
        """Whether there is nothing here.

        Returns:
            False where there is a run.

        Raises:
            StoreExistsError: if there is something else, which is never replaced.
            StoreError: if the run is of another format.
        """
        if self.path is not None:
            for path in (self.path, *self.path.parents):
                if path.exists() and not path.is_dir():
                    raise StoreExistsError(f"{path} is a file. Choose another place for the store.")
            there = self.path.iterdir() if self.path.exists() else ()
            if all(_PARTIAL.fullmatch(path.name) and path.is_file() for path in there):
                return True
        try:
            Store(self.location, read_only=True).attributes  # noqa: B018
        except StoreError as error:
            if self.path is None and isinstance(error.__cause__, GroupNotFoundError):
                return True
            is_unreachable = self.path is None and "cannot be opened" in str(error)
            if "format version" in str(error) or is_unreachable:
                raise
            raise StoreExistsError(
                f"{self} holds something that is not a run of this package, so it is never "
                "replaced. Choose another place for the store."
            ) from error
        return False

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Makes the group, in place of a run that is there; its attributes come in the same file.

        Args:
            attributes: what JSON can hold; `writer` among them says who may write here.
        """
        self._arrays.clear()
        self.writer = attributes.get("writer")
        marks = {"format": FORMAT, "format_version": FORMAT_VERSION}
        with os_errors_named(self):
            if self.path is not None:
                self._empty_folder(self.path.resolve())
            zarr.create_group(
                self.location,
                zarr_format=3,
                attributes=marks | dict(attributes),
                overwrite=self.path is None,
            )

    def _empty_folder(self, path: Path) -> None:
        """Renames it first: a folder that is half deleted would not be known as a run."""
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            with taking_over(path):
                path.rename(old)
            shutil.rmtree(old)
        path.mkdir(parents=True)

    def _remove_replaced(self, path: Path) -> None:
        """Deletes what killed processes left of runs that they were replacing."""
        pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.old")
        for old in path.parent.iterdir():
            if pattern.fullmatch(old.name) and old.is_dir():
                shutil.rmtree(old, ignore_errors=True)

    # Its writers

    def take_over(self, writer: str) -> None:
        """From now on only who has this as `writer` writes here: nobody of a run that was killed.

        Args:
            writer: another one for each call that works on the run.
        """
        if writer == self.writer:
            return
        with os_errors_named(self), nullcontext() if self.path is None else taking_over(self.path):
            self._edit({"writer": writer})
        self.writer = writer

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Refuses to write where another run is now, which cannot come while a file is written.

        Yields:
            Nothing.

        Raises:
            StoreError: if there is another run, or the file system or the store refuses.
        """
        if self.writer is None:
            with os_errors_named(self):
                yield
            return
        if self.path is not None and not self.path.is_dir():
            raise self._lost()
        with os_errors_named(self), nullcontext() if self.path is None else writing_in(self.path):
            # Searched, since it takes a hundredth of the time of reading all attributes.
            if self.writer.encode() not in self._metadata():
                raise self._lost()
            yield

    def _metadata(self) -> bytes:
        self._zarr = self._zarr or self.group.store
        found = sync(self._zarr.get("zarr.json", default_buffer_prototype()))
        return b"" if found is None else found.to_bytes()

    def _edit(self, attributes: Mapping[str, Any]) -> None:
        """Changes attributes of the group; unlike Zarr's own way it keeps consolidated metadata."""
        store, metadata = self.group.store, json.loads(self._metadata())
        metadata["attributes"] |= attributes
        text = json.dumps(metadata, indent=2).encode()
        sync(store.set("zarr.json", default_buffer_prototype().buffer.from_bytes(text)))

    def _lost(self) -> StoreError:
        return StoreError(
            f"{self} is no longer the store of this run: another call has replaced it or works on "
            "it. Nothing more is written there. Let one call at a time work on a store."
        )

    def sweep(self) -> None:
        """Deletes what killed writers left, of which other programs would warn."""
        with os_errors_named(self):
            for path in self.path.rglob("*.partial") if self.path is not None else ():
                path.unlink(missing_ok=True)

    def update(self, attributes: Mapping[str, Any]) -> None:
        """Changes some attributes."""
        with self._writing():
            self._edit(attributes)

    def label(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Changes some attributes of an array."""
        with self._writing():
            self.array(name).attrs.update(attributes)

    def finish(self) -> None:
        """Marks the run as complete, and consolidates the metadata: xarray warns without that."""
        with self._writing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            group = zarr.consolidate_metadata(self.group.store)
            group.attrs["complete"] = True  # last, in one file with the rest

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs off this store, on this machine's file systems; removes leftovers.

        Yields:
            Nothing.

        Raises:
            StoreError: if another run is at work here, or nothing can be written beside the store.
        """
        if self.path is None:
            yield
            return
        path = self.path.resolve()
        lock = path.with_name(f"{path.name}.lock")
        with os_errors_named(self):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = acquire(lock)
            if file is None:
                raise StoreError(
                    f"Another run is writing to {self}. Wait for it, or choose another store."
                )
        try:
            self._remove_replaced(path)
            yield
        finally:
            release(file, lock)

    # Arrays

    def require(
        self,
        name: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: Any,
        dimensions: tuple[str, ...] | None,
    ) -> "zarr.Array[Any]":
        """Makes an array, unless it is there.

        Args:
            name: its path in the group.
            shape: of the array.
            chunks: the shape of a chunk.
            dtype: NumPy's, or "string".
            dimensions: their names.

        Returns:
            The array.
        """
        if name in self:
            return self.array(name)
        with self._writing():
            # What a killed process left of an array of that name would pass for the new one's.
            sync(self.group.store.delete_dir(name))
            codecs = [] if name in DENSE or name.startswith(WORK) else [ZstdCodec(level=1)]
            floating = dtype != "string" and np.issubdtype(dtype, np.floating)
            self.group.create_array(
                name,
                shape=shape,
                chunks=tuple(max(1, min(c, s)) for c, s in zip(chunks, shape, strict=True)),
                dtype=dtype,
                fill_value=np.nan if floating else None,
                compressors=[*codecs, Crc32cCodec()],
                dimension_names=dimensions,
            )
        return self.array(name)

    def array(self, name: str) -> "zarr.Array[Any]":
        """An array, opened once.

        Args:
            name: its path in the group.

        Returns:
            The array.

        Raises:
            StoreError: if there is none, or its metadata are damaged.
        """
        if name not in self._arrays:
            if name not in self:
                raise StoreError(f"{self} has no array '{name}'.")
            # Otherwise a chunk that equals the fill value would not be written.
            with zarr.config.set({"array.write_empty_chunks": True}):
                self._arrays[name] = cast("zarr.Array[Any]", self.group[name])
        return self._arrays[name]

    def names(self) -> list[str]:
        """The names of all arrays but the intermediate ones.

        Returns:
            Names, sorted.

        Raises:
            StoreError: if the metadata of one are damaged.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Object at .* is not recognized")
            try:
                return sorted(name for name in self.group if name != WORK)
            except ValueError as error:
                raise StoreError(f"The metadata of {self} are damaged: {error}.") from error

    def __contains__(self, name: str) -> bool:
        try:
            return name in self.group
        except ValueError as error:
            raise StoreError(f"The metadata of '{name}' in {self} are damaged: {error}.") from error

    def delete(self, name: str) -> None:
        """Deletes an array or a group of arrays, and what a killed process left of it."""
        with self._writing():
            sync(self.group.store.delete_dir(name))
            for gone in [a for a in self._arrays if a == name or a.startswith(f"{name}/")]:
                del self._arrays[gone]

    def write(self, name: str, where: Any, values: Array) -> None:
        """Writes whole chunks.

        Args:
            name: of the array.
            where: an index of NumPy's kind, along chunks.
            values: finite, where they are floating.
        """
        with self._writing():
            self.array(name)[where] = values

    def read(self, name: str, where: Any = ...) -> Array:
        """Reads an array or a part of it, whose chunks must all be there and sound.

        Args:
            name: of the array.
            where: an index of slices along each dimension.

        Returns:
            The values.

        Raises:
            StoreError: if a chunk is missing or damaged; names it.
        """
        array = self.array(name)
        try:
            values = np.asarray(array[where])
        except Exception as error:  # a checksum, a codec or the file system
            there = self._touched(name, where) & self.present(name)
            broken = [chunk for chunk in there if not self._is_sound(name, chunk)]
            if not broken:
                raise
            raise self._damaged(_keys_of(name, broken)) from error
        # A sum is NaN where an entry is, and far faster in half precision than looking at each.
        whole = np.ascontiguousarray(values)
        if not np.issubdtype(whole.dtype, np.floating) or torch.from_numpy(whole).sum().isnan():
            missing = self._touched(name, where) - self.present(name)
            if missing:
                raise self._damaged(_keys_of(name, missing))
        return values

    def _touched(self, name: str, where: Any) -> set[Chunk]:
        """The chunks that an index of numbers and slices, and perhaps an ellipsis, reads from."""
        array = self.array(name)
        given = where if isinstance(where, tuple) else (where,)
        first = given.index(...) if ... in given else len(given)
        rest = given[first + 1 :]
        whole = (slice(None),) * (array.ndim - first - len(rest))
        ranges = []
        for at, size, chunk in zip(
            given[:first] + whole + rest, array.shape, array.chunks, strict=True
        ):
            start, stop, _ = (at if isinstance(at, slice) else slice(at, at + 1)).indices(size)
            ranges.append(range(start // chunk, -(-stop // chunk)))
        return set(product(*ranges))

    # What is there

    def expected(self, name: str) -> set[Chunk]:
        """All chunks that an array has when it is complete."""
        counts = self.array(name).cdata_shape
        return set(product(*(range(count) for count in counts)))

    def present(self, name: str) -> set[Chunk]:
        """The chunks of an array that are there, sound or not."""
        pattern = re.compile(re.escape(name) + r"/c((?:/\d+)+)")  # not what a killed writer left
        matches = (pattern.fullmatch(key) for key in _keys(self.group.store, f"{name}/c/"))
        return {tuple(map(int, match[1].split("/")[1:])) for match in matches if match}

    def has(self, name: str, chunk: Chunk) -> bool:
        """Whether one chunk is there, sound or not."""
        key = f"{name}/c/{'/'.join(map(str, chunk))}"
        return sync(self.group.store.exists(key))

    def sound(self, name: str) -> set[Chunk]:
        """The chunks of an array that read back through their checksums and are finite."""
        if name not in self:
            return set()
        return {chunk for chunk in self.present(name) if self._is_sound(name, chunk)}

    def check(self) -> None:
        """Reads every chunk.

        Raises:
            StoreError: if any is missing or damaged; names them.
        """
        keys = []
        for name in self.names():
            keys += _keys_of(name, self.expected(name) - self.sound(name))
        if keys:
            raise self._damaged(keys)

    def _is_sound(self, name: str, chunk: Chunk) -> bool:
        try:
            values = np.asarray(self.array(name).get_block_selection(chunk))
        except Exception:  # damaged files raise anything, from ValueError to MemoryError
            return False
        computed = np.issubdtype(values.dtype, np.floating) and not name.startswith(METADATA)
        return not computed or bool(np.isfinite(values).all())

    def _damaged(self, keys: Sequence[str]) -> StoreError:
        some = ", ".join(keys[:10]) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")
        return StoreError(
            f"{self} has {len(keys)} missing or damaged chunks: {some}. Call run_influences again "
            "with the same arguments, which recomputes just these."
        )


def as_location(location: Any) -> Any:
    """A place for a store, as Zarr takes it.

    Args:
        location: a path, a URL or a Zarr store.

    Returns:
        A string or a Zarr store.

    Raises:
        StoreError: if it is a zip file, in which nothing can be replaced.
    """
    if isinstance(location, Store):
        return location.location
    if isinstance(location, ZipStore) or str(location).endswith(".zip"):
        raise StoreError(
            "A zip file cannot hold a run: a killed run would leave it unreadable. Use a folder, "
            "and pack it when the run is complete."
        )
    if isinstance(location, ZarrStore):
        return location
    # Zarr opens file:// through fsspec, which does not write files at once.
    text = re.sub(r"^(file|local)://", "", str(location))
    # Absolute: workers have other working directories.
    if "://" in text:
        return text
    path = Path(text).expanduser().absolute()
    return LocalStore(path) if "::" in text else str(path)  # Zarr takes text with :: for a URL


def is_shared(store: Store) -> bool:
    """Whether other processes see what this one writes."""
    text = str(store.location)
    return not isinstance(store.location, MemoryStore) and not text.startswith("memory:")


@contextmanager
def os_errors_named(store: Store) -> Iterator[None]:
    """Turns what the file system says while writing into a message that names the store.

    Args:
        store: to which something is written.

    Yields:
        Nothing.

    Raises:
        StoreError: if the file system or the store refuses.
        ValueError: whatever else went wrong.
    """
    try:
        yield
    except StoreError:
        raise
    except PermissionError as error:
        raise StoreError(f"{store} cannot be written: {error}.") from error
    except OSError as error:
        remedy = "make room" if error.errno in (ENOSPC, EDQUOT) else "mend the cause"
        raise StoreError(
            f"Writing to {store} failed: {error}. What was written before stays; {remedy}, and "
            "call run_influences again with the same arguments to go on."
        ) from error
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise StoreError(f"{store} is read-only.") from error


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the fingerprints of two runs, a line each.

    Args:
        stored: of the run in the store.
        now: of the run that is asked for.

    Returns:
        Lines for people.
    """
    lines = []
    for key in dict.fromkeys((*stored, *now)):
        a, b = stored.get(key), now.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict) and key == "run metadata":
            lines += [f"{key}: {line}" for line in differences(a, b)]
        elif isinstance(a, dict) and isinstance(b, dict):
            names = [name for name in dict.fromkeys((*a, *b)) if a.get(name) != b.get(name)]
            some = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
            lines.append(f"{key}: {len(names)} differ ({some})")
        else:
            lines.append(f"{key}: {a!r} in the store, {b!r} now")
    return lines


def listed(lines: Sequence[str]) -> str:
    """Lines as a list, below what introduces them."""
    return "".join(f"\n  - {line}" for line in lines)


def _keys_of(name: str, chunks: Iterable[Chunk]) -> list[str]:
    return [f"{name}/c/{'/'.join(map(str, chunk))}" for chunk in sorted(chunks)]


def _keys(store: ZarrStore, prefix: str) -> list[str]:
    async def listed() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sync(listed())
