"""A store that is written: a chunk has one writer, and appears at once and whole."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from errno import EDQUOT, ENOSPC
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError

from pydvl_datainf.errors import StoreError, StoreExistsError
from pydvl_datainf.results.arrays import WORK, Array, Layout
from pydvl_datainf.results.chunk_files import write_chunk
from pydvl_datainf.results.chunks import selection_of
from pydvl_datainf.results.locking import acquire, lock_of, release, taking_over, writing_in
from pydvl_datainf.results.stored import FORMAT, FORMAT_VERSION, Stored

GLANCE = 0.1
"""Seconds after which whoever only looks whether a store is locked has let go of it."""

_PARTIAL = re.compile(r"zarr\.[0-9a-f]{32}\.partial")
"""Metadata that a writer was killed at."""


class Store(Stored):
    """One Zarr group that holds one run, and is written.

    Args:
        location: a path, a URL that fsspec knows, or a Zarr store.
        writer: refuse to write where the attribute `writer` is another one; None = write anyway.
    """

    mode = "r+"

    def __init__(self, location: Any, *, writer: str | None = None):
        super().__init__(location)
        self.writer = writer

    # The group

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
            Stored(self.location).attributes  # noqa: B018
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

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Makes the group, in place of a run that is there; its attributes come in the same file.

        Args:
            attributes: what JSON can hold; `writer` among them says who may write here.

        Raises:
            StoreError: if the store is read-only, or the file system refuses.
        """
        if isinstance(self.location, ZarrStore) and self.location.read_only:
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
        lock = lock_of(path)
        with os_errors_named(self):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = acquire(lock)
                if file is None:
                    sleep(GLANCE)
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
            zarr.create_array(self._files, zarr_format=3, **layout.settings(name))
        return self.array(name)

    def _looks_like(self, name: str, layout: Layout) -> bool:
        try:
            return layout.is_that_of(name, self._as_described(name))
        except StoreError:
            return False

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
        chosen = selection_of(self.array(name), where)
        shape = tuple(size for at, size, _ in chosen if isinstance(at, slice))
        if np.shape(values) != shape:
            raise ValueError(f"'{name}' takes {shape} at {where}, got {np.shape(values)}.")
        chunk = self._only_chunk(name, chosen)
        with self._writing():
            if chunk is None:
                self.array(name)[where] = values
            else:
                inner = np.reshape(values, [size for _, size, _ in chosen])
                write_chunk(self._folder(name), self.array(name), chunk, inner)


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
