"""What is kept beside the store of a run."""

from pathlib import Path

from pydvl_datainf.results.reader import InfluenceRun


def bank_beside(run: InfluenceRun) -> str | None:
    """Where `validate` keeps the losses of a run, if it is not told: beside its store.

    Args:
        run: complete or not.

    Returns:
        A path or URL; None where the store is an object in memory.
    """
    place = run.store.path or run.store.location
    return f"{str(place).rstrip('/')}.bank" if isinstance(place, str | Path) else None
