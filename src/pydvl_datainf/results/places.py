"""Where a store can be: a folder, a URL, or a Zarr store; zip files are refused."""

import re
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, ZipStore

from pydvl_datainf.errors import StoreError


def as_location(location: Any) -> Any:
    """A place for a store, as Zarr takes it.

    Args:
        location: a path, a URL or a Zarr store.

    Returns:
        A string or a Zarr store.

    Raises:
        StoreError: if it is a zip file, in which nothing can be replaced, or no path can be so.
    """
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
