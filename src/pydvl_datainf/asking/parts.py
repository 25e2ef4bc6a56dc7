"""What is asked of a sum of runs: its parts, each with its own model."""

from pathlib import Path
from typing import Any

from pydvl_datainf.errors import PlanError, StoreError
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
    part = run.parts[k]
    if not (run.allow_other_places or _is_near(part.place, run.store.path)):
        raise StoreError(
            f"Part {k + 1} of {run.store} is {part.place}, which is not below the folder of the "
            "sum. If you trust that place, open the run with allow_other_places=True."
        )
    found = InfluenceRun(part.place, allow_other_places=run.allow_other_places)
    if found.attrs["checksum"] != part.checksum:
        raise StoreError(
            f"{part.place}, part {k + 1} of {run.store}, holds another run now. Put the run that "
            "was added back, or make the sum again."
        )
    if found.parts:
        raise StoreError(
            f"{part.place}, part {k + 1} of {run.store}, is a sum itself, and of sums of sums "
            "nothing is asked. Add its parts with their weights in one sum."
        )
    return found


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
    return f"{store}.parts/{k + 1}.zarr" if isinstance(store, str | Path) else None
