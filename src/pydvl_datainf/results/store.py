"""The store of a run: a Zarr v3 group, format 2, specified in docs/store-format.md.

A chunk is the unit of work and of writing: it has one writer, appears at once and whole, and
carries a checksum. What was done is what is there and sound; there is no other book-keeping.
"""

import json
import operator
import os
import re
import shutil
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from errno import EDQUOT, ENOSPC
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import LocalStore, MemoryStore, ZipStore

from pydvl_datainf.errors import StoreError, StoreExistsError
from pydvl_datainf.results.arrays import WORK, Layout, is_compressed
from pydvl_datainf.results.chunks import FREE, NAMED, Chunk, guarded, lacking
from pydvl_datainf.results.locking import acquire, release, taking_over, writing_in

FORMAT = "pydvl-datainf influences"
FORMAT_VERSION = 2
METADATA = ("test_", "train_")
"""How the names of the caller's columns begin; only these may hold NaN."""

_PARTIAL = re.compile(r"zarr\.[0-9a-f]{32}\.partial")
"""Metadata that a writer was killed at."""

REPAIR = (
    " Call {} again with the same arguments: what is damaged or missing is made again, and nothing "
    "else is computed."
)
FEW = 1000
"""Chunks that are read without looking first whether there are so many."""

Array = npt.NDArray[Any]


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
            return zarr.open_group(
                self.location, mode="r" if self.read_only else "r+", use_consolidated=False
            )
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
                "replaced. Choose another place for the store. If it was a run, its zarr.json is "
                "damaged: put back a copy of that file, or delete the store by hand."
            ) from error
        return False

    def holds(self, other: "Store") -> bool:
        """Whether another store, which exists, is at this place or within it, by whatever name."""
        if self.path is None or other.path is None:
            return f"{other}/".startswith(f"{str(self).rstrip('/')}/")
        inner = other.path.resolve()
        return self.path.exists() and any(map(self.path.samefile, (inner, *inner.parents)))

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Makes the group, in place of a run that is there; its attributes come in the same file.

        Args:
            attributes: what JSON can hold; `writer` among them says who may write here.

        Raises:
            StoreError: if the store is read-only, or the file system refuses.
        """
        if self.read_only or (isinstance(self.location, ZarrStore) and self.location.read_only):
            raise StoreError(f"{self} is read-only.")  # before anything is deleted
        self._arrays.clear()
        self.writer, self.checksum = attributes.get("writer"), attributes.get("checksum")
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
            self._check_deletable(path)
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            with taking_over(path):
                path.rename(old)
            shutil.rmtree(old)
        path.mkdir(parents=True)

    def _check_deletable(self, path: Path) -> None:
        """Before it is renamed: what cannot be deleted would stay there, hidden."""
        for folder, _, _ in os.walk(path):
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise StoreError(
                    f"{self} cannot be replaced: nothing may be deleted in {folder}. The run that "
                    "is there stays. Choose another place for the store, or change the rights."
                )

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
        if self.path is not None:  # without Zarr's detour through its own thread
            file = self.path / "zarr.json"
            return file.read_bytes() if file.is_file() else b""
        found = sync(self._files.get("zarr.json", default_buffer_prototype()))
        return b"" if found is None else found.to_bytes()

    def _edit(self, attributes: Mapping[str, Any]) -> None:
        """Changes attributes of the group; unlike Zarr's own way it keeps consolidated metadata."""
        metadata = json.loads(self._metadata())
        metadata["attributes"] |= attributes
        text = json.dumps(metadata, indent=2).encode()
        sync(self._files.set("zarr.json", default_buffer_prototype().buffer.from_bytes(text)))

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

    def finish(self, extras: Sequence[str]) -> None:
        """Marks the run as complete, and consolidates the metadata: xarray warns without that.

        Args:
            extras: names of the arrays that are there because they were asked for.
        """
        with self._writing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            group = zarr.consolidate_metadata(self.group.store)
            # Last, in one file with the rest.
            group.attrs.update({"complete": True, "extras": list(extras)})

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
            try:
                file = acquire(lock)
            except FileNotFoundError as error:  # the folder is there
                raise StoreError(
                    f"{self} cannot be written: {path.parent} takes no files. Choose another place "
                    "for the store."
                ) from error
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
        layout = Layout(shape, chunks, dtype, dimensions)
        if name in self and self._looks_like(name, layout):
            return self.array(name)
        with self._writing():
            self._arrays.pop(name, None)
            if name.startswith(WORK):  # a killed process may have left chunks of another piece
                sync(self._files.delete_dir(name))
            elif name in self:
                sync(self._files.delete(f"{name}/zarr.json"))  # chunks are known by their checksums
            self.group.create_array(**layout.settings(name))
        return self.array(name)

    def _looks_like(self, name: str, layout: Layout) -> bool:
        try:
            return layout.is_that_of(name, self._as_described(name))
        except StoreError:
            return False

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
            mode: Any = "r" if self.read_only else "r+"
            return zarr.open_array(files, path=name, mode=mode, zarr_format=3)

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
        return sync(self._files.exists(f"{name}/zarr.json"))

    def delete(self, name: str) -> None:
        """Deletes an array or a group of arrays, and what a killed process left of it."""
        with self._writing():
            sync(self._files.delete_dir(name))  # whatever its metadata say
            for gone in [a for a in self._arrays if a == name or a.startswith(f"{name}/")]:
                del self._arrays[gone]

    def write(self, name: str, where: Any, values: Array) -> None:
        """Writes whole chunks.

        Args:
            name: of the array.
            where: an index of NumPy's kind, along chunks.
            values: of the shape that is chosen; finite, where they are floating.

        Raises:
            ValueError: if they are of another shape, which Zarr would repeat to fill the place.
        """
        chosen = self._chosen(name, where)
        shape = tuple(size for at, size, _ in chosen if isinstance(at, slice))
        if np.shape(values) != shape:
            raise ValueError(f"'{name}' takes {shape} at {where}, got {np.shape(values)}.")
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
            StoreError: if a chunk is missing or damaged; names it. Or if there is another run now.
        """
        try:
            return self._read(name, where)
        finally:  # afterwards, since a run can be replaced while it is read
            self.check_same_run()

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

    def _read(self, name: str, where: Any) -> Array:
        array, touched = self.array(name), self._touched(name, where)
        self._check_count(name, touched)
        try:
            values = np.asarray(array[where])
        except Exception as error:  # a checksum, a codec or the file system
            there = set(product(*touched)) & self.present(name)
            broken = [chunk for chunk in there if not self._is_sound(name, chunk)]
            if not broken:
                raise
            raise self._damaged(_keys_of(name, broken), len(broken)) from error
        # A sum is NaN where an entry is, and far faster in half precision than looking at each.
        whole = np.ascontiguousarray(values)
        if not np.issubdtype(whole.dtype, np.floating) or torch.from_numpy(whole).sum().isnan():
            self._check_present(name, touched)
        return values

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

    def _touched(self, name: str, where: Any) -> list[range]:
        """The chunks, along each axis, that numbers, slices and perhaps an ellipsis read from."""
        return [chunks for _, _, chunks in self._chosen(name, where)]

    def _chosen(self, name: str, where: Any) -> list[tuple[Any, int, range]]:
        """Along each axis the number or slice, how much of it that is, and in which chunks."""
        array = self.array(name)
        given = where if isinstance(where, tuple) else (where,)
        first = given.index(...) if ... in given else len(given)
        rest = given[first + 1 :]
        whole = (slice(None),) * (array.ndim - first - len(rest))
        chosen = []
        for at, size, chunk in zip(
            given[:first] + whole + rest, array.shape, array.chunks, strict=True
        ):
            start, stop, _ = (at if isinstance(at, slice) else slice(at, at + 1)).indices(size)
            chosen.append((at, stop - start, range(start // chunk, -(-stop // chunk))))
        return chosen

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
        key = f"{name}/c/{'/'.join(map(str, chunk))}"
        return sync(self._files.exists(key))

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


def as_location(location: Any) -> Any:
    """A place for a store, as Zarr takes it.

    Args:
        location: a path, a URL or a Zarr store.

    Returns:
        A string or a Zarr store.

    Raises:
        StoreError: if it is a zip file, in which nothing can be replaced, or no path can be so.
    """
    if isinstance(location, Store):
        return location.location
    if isinstance(location, ZipStore) or str(location).endswith(".zip"):
        raise StoreError(
            "A zip file cannot hold a run: a killed run would leave it unreadable. Use a folder, "
            "and pack it when the run is complete."
        )
    if isinstance(location, LocalStore) and not location.root.is_absolute():
        return LocalStore(location.root.absolute(), read_only=location.read_only)
    if isinstance(location, ZarrStore):
        return location
    # Zarr opens file:// through fsspec, which does not write files at once.
    text = re.sub(r"^(file|local)://", "", str(location))
    # Absolute: workers have other working directories.
    if "://" in text:
        return text
    path = _path(text)
    return LocalStore(path) if "::" in text else str(path)  # Zarr takes text with :: for a URL


def _path(text: str) -> Path:
    try:
        path = Path(text).expanduser().absolute()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # looked at when it is opened or made
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, no such home
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"{text[:100]!r} cannot be the path of a store: {why}.") from error
    return path


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
            f"call {store.maker} again with the same arguments to go on."
        ) from error
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        raise StoreError(f"{store} is read-only.") from error


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    same: Callable[[Any, Any], bool] = operator.eq,
) -> list[str]:
    """What differs between the fingerprints of two runs, a line each.

    Args:
        stored: of the run in the store.
        now: of the run that is asked for.
        same: whether two entries are; those of the run's metadata are where JSON has one text for
            both, since to Python 1 equals True.

    Returns:
        Lines for people.
    """
    lines = []
    for key in dict.fromkeys((*stored, *now)):
        a, b = stored.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict) and key == "run metadata":
            lines += [f"{key}: {line}" for line in differences(a, b, _same_text)]
        elif same(a, b):
            continue
        elif isinstance(a, dict) and isinstance(b, dict):
            names = [k for k in dict.fromkeys((*a, *b)) if not same(a.get(k), b.get(k))]
            some = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
            lines.append(f"{key}: {len(names)} differ ({some})")
        else:
            lines.append(f"{key}: {a!r} in the store, {b!r} now")
    return lines


def _same_text(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def listed(lines: Sequence[str]) -> str:
    """Lines as a list, below what introduces them."""
    return "".join(f"\n  - {line}" for line in lines)


def _keys_of(name: str, chunks: Iterable[Chunk]) -> list[str]:
    return [f"{name}/c/{'/'.join(map(str, chunk))}" for chunk in sorted(chunks)]


def _listed(keys: AsyncIterator[str]) -> list[str]:
    async def listed() -> list[str]:
        return [key async for key in keys]

    return sync(listed())
