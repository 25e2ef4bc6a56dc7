"""What is kept beside the store of a run, and whether it is of that run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydvl_datainf.results.reader import InfluenceRun

OF_LOSSES = (
    "task",
    "model",
    "adapter",
    "labels",
    "chat",
    "max_length",
    "reduction",
    "beta",
    "query",
)
"""Fields of a job on which losses after tuning depend, beside the data and `training`."""

OF_ARITHMETIC = ("dtype", "quantization", "attention", "trust_remote_code")
"""Those that change them by rounding at most, or as little as arithmetic does."""


def bank_beside(run: InfluenceRun) -> str | None:
    """Where `validate` keeps the losses of a run, if it is not told: beside its store.

    Args:
        run: complete or not.

    Returns:
        A path or URL; None where the store is an object in memory.
    """
    place = run.store.path or run.store.location
    return f"{str(place).rstrip('/')}.bank" if isinstance(place, str | Path) else None


def losses_said(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job says of losses after tuning, as the recipe of a bank keeps it.

    Args:
        job: as a result tells it.

    Returns:
        Those of its fields that decide them.
    """
    return {name: job[name] for name in (*OF_LOSSES, *OF_ARITHMETIC) if name in job}


def other_fields(run: InfluenceRun, recipe: str) -> list[str]:
    """In which fields the job of a run is another than that of retrainings.

    Args:
        run: of a job, or made by other means.
        recipe: of a bank.

    Returns:
        Names; none where either does not tell of a job.
    """
    try:
        told: Any = json.loads(recipe)
    except ValueError:  # in words
        return []
    theirs = told.get("job") if isinstance(told, dict) else None
    job = run.metadata("run").get("job")
    if not isinstance(theirs, dict) or not isinstance(job, dict):
        return []
    mine = losses_said(job)
    return sorted(name for name in mine.keys() | theirs if mine.get(name) != theirs.get(name))
