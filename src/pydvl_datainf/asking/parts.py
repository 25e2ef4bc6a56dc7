"""What is asked of a sum of runs: its parts, each with its own model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

from pydvl_datainf.errors import PlanError, StoreError
from pydvl_datainf.results.places import as_location
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.runner.train_side import StoredRows

ENCODERS = "encoders"


def runs_to_ask(run: InfluenceRun) -> list[InfluenceRun]:
    """The runs with the rows of a run: itself, or the parts of a sum, in their order.

    Args:
        run: complete.

    Returns:
        Runs, each of which can be queried.
    """
    runs = [_part(run, k) for k in range(len(run.parts))] or [run]
    for each in runs:
        StoredRows(each.store, each.allow_other_places)  # refuses early one that keeps none
    return runs


def _part(run: InfluenceRun, k: int) -> InfluenceRun:
    part, place = run.parts[k], run.parts[k].place
    is_near = run.allow_other_places or _is_near(place, run.store.path)
    beside = place_of_part(run.store.path, k)
    moved = not is_near or not ("://" in place or Path(place).exists())
    if moved and beside is not None and Path(beside).is_dir():  # with the sum
        place, is_near = beside, True
    if not is_near:
        raise StoreError(
            f"Part {k + 1} of {run.store} is {place}, which is not below the folder of the "
            "sum. If you trust that place, open the run with allow_other_places=True."
        )
    found = InfluenceRun(place, allow_other_places=run.allow_other_places)
    if found.attrs["checksum"] != part.checksum:
        raise StoreError(
            f"{place}, part {k + 1} of {run.store}, holds another run now. Put the run that "
            "was added back, or make the sum again."
        )
    if found.parts:
        raise StoreError(
            f"{place}, part {k + 1} of {run.store}, is a sum itself, and of sums of sums "
            "nothing is asked. Add its parts with their weights in one sum."
        )
    rows = found.attrs["rows_in"]
    if rows is not None and _is_near(rows, run.store.path):  # answers that were kept beside the sum
        return InfluenceRun(place, allow_other_places=True)
    return found


def check_places(run: InfluenceRun, runs: Sequence[InfluenceRun], store: Any) -> None:
    """Checks that the answers of a sum replace nothing that they are asked of.

    Args:
        run: the sum.
        runs: its parts.
        store: of the answers.

    Raises:
        StoreError: if a place of theirs is that of the sum or of a part.
    """
    asked = {_known(each.store.location) for each in (run, *runs)}
    for place in (store, *(place_of_part(store, k) for k in range(len(runs)))):
        if place is not None and _known(as_location(place)) in asked:
            raise StoreError(
                f"{place}, where answers would go, holds a run that is asked. Choose another place "
                "for the answers."
            )


def _known(location: Any) -> Any:
    """A place by which others are told to be the same."""
    path = location.root if isinstance(location, LocalStore) else location
    is_path = isinstance(path, Path) or (isinstance(path, str) and "://" not in path)
    return os.path.realpath(path) if is_path else path


def _is_near(place: str, total: Path | None) -> bool:
    """Whether a part is below the folder of the sum: a run may come from anybody."""
    # Not even looked at: two slashes, either way round, begin the name of a host to some systems.
    if total is None or "://" in place or place.startswith(("//", "\\\\")):
        return False
    try:
        return Path(place).resolve().is_relative_to(total.resolve().parent)
    except (OSError, ValueError, RuntimeError):  # no such name, or a loop
        return False


def given_for(run: InfluenceRun, given: Any, what: str) -> list[Any]:
    """What was given for each of the runs that are asked.

    Args:
        run: one, or a sum.
        given: one of each, or, of encoders, one for all.
        what: is given.

    Returns:
        One for each run.

    Raises:
        PlanError: if there are more or fewer.
    """
    count = max(1, len(run.parts))
    if not isinstance(given, list | tuple):
        given = [given] * (count if what == ENCODERS else 1)
    if len(given) != count:
        raise PlanError(
            f"{run.store} is a sum of {count} runs, and there are {len(given)} {what}: give one "
            "for each part, in their order (run.parts)."
            if run.parts
            else f"{run.store} is a single run, and there are {len(given)} {what}: give one."
        )
    return list(given)


def place_of_part(store: Any, k: int) -> Any:
    """Where the answers of a part go: beside those of the sum, as the parts of jobs are.

    Args:
        store: of the sum's answers.
        k: number of the part, from 0.

    Returns:
        A path or a URL; None = in memory, where the sum has no name.
    """
    if not isinstance(store, str | Path):
        return None
    return f"{str(store).rstrip('/')}.parts/{k + 1}.zarr"
