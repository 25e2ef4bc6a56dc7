"""Where the training rows of a query's run are, as far as a store may lead anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydvl_datainf.errors import StoreError
from pydvl_datainf.store import Store


def rows_in(attributes: Mapping[str, Any], store: Store, allow_other_places: bool) -> str | None:
    """The store whose training rows a run uses.

    A run may come from anybody, and what it names may be any file here or any address in the
    network; so what is not beside it is followed only on request.

    Args:
        attributes: of the run.
        store: of the run.
        allow_other_places: follow whatever is named.

    Returns:
        The place; None where the run has rows of its own, or none at all.

    Raises:
        StoreError: if the place is not beside the store, and that is not allowed.
    """
    place: str | None = attributes["rows_in"]
    if place is None or allow_other_places or _is_beside(place, store.path):
        return place
    raise StoreError(
        f"{store} uses the training rows in {place}, which is not a folder beside it. If you trust "
        "that place, open the run with allow_other_places=True."
    )


def _is_beside(place: str, store: Path | None) -> bool:
    # Not even looked at: with two slashes, either way round, a host may be meant.
    if store is None or place.startswith(("//", "\\\\")):
        return False
    try:
        other = Store(place).path
        return other is not None and other.resolve().parent == store.resolve().parent
    except (OSError, ValueError, RuntimeError):  # no such name, or a loop
        return False
