"""The training rows of a query's run, which are in another store, as far as that is followed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydvl_datainf.errors import StoreError
from pydvl_datainf.results.layout import opened
from pydvl_datainf.results.record import COMPRESSION
from pydvl_datainf.results.stored import Stored

SHARED = (
    "method",
    "objective",
    "dtype",
    "model",
    "blocks",
    "damping",
    "training samples",
    "training data",
    COMPRESSION,
)
"""Parts of the fingerprint in which a query is as the run whose rows it uses."""


def rows_store(attributes: Mapping[str, Any], store: Stored, anywhere: bool) -> Stored | None:
    """The store whose training rows a run uses.

    Args:
        attributes: of the run.
        store: of the run.
        anywhere: follow whatever place is named.

    Returns:
        The store, read-only; None where the run is no query.

    Raises:
        StoreError: if the place is not to be followed, or there is no run, one that keeps no rows,
            or another one by now.
    """
    place = attributes["rows_in"]
    if place is None:
        return None
    if not is_followed(place, store, anywhere):
        raise StoreError(
            f"{store} uses the training rows in {place}, which is no folder beside it. If you "
            "trust that place, open the run with allow_other_places=True."
        )
    rows = Stored(place)
    theirs = opened(rows)
    if not theirs["complete"]:
        raise StoreError(f"{place}, the store whose rows {store} uses, is not complete.")
    if theirs["plan"]["rows"] != "zarr" or theirs["rows_in"] is not None:
        why = "" if theirs["rows_in"] is None else "is itself a query, and "
        raise StoreError(
            f"{place}, the store whose rows {store} uses, {why}keeps no training rows. Put the run "
            "that was there back."
        )
    mine, other = attributes["fingerprint"], theirs["fingerprint"]
    different = [key for key in SHARED if mine.get(key) != other.get(key)]
    if different:
        raise StoreError(
            f"{place}, the store whose rows this run used, holds another run now: "
            f"{', '.join(different)} differ. Put the run that was there back, or query the one "
            "that is there now."
        )
    return rows


def is_followed(place: str, store: Stored, anywhere: bool) -> bool:
    """Whether the rows of a run are read where it says that they are.

    A run may come from anybody, and what it names may be any file here and any address in a
    network. So only what is beside it is followed, unless more is allowed.

    Args:
        place: that the run names.
        store: of the run.
        anywhere: follow whatever place is named.

    Returns:
        Whether they are.
    """
    return anywhere or _is_beside(place, store.path)


def _is_beside(place: str, store: Path | None) -> bool:
    # Not even looked at: two slashes, either way round, begin the name of a host to some systems.
    if store is None or place.startswith(("//", "\\\\")):
        return False
    try:
        other = Stored(place).path
        return other is not None and other.resolve().parent == store.resolve().parent
    except (OSError, ValueError, RuntimeError):  # no such name, or a loop
        return False
