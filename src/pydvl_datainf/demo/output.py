"""The folder of results: what may stand in it, and what of it may be gone on with or replaced."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydvl_datainf.demo.errors import OutputError
from pydvl_datainf.demo.packages import MODEL_PACKAGE, MODEL_SHA256, REVIEWS_PACKAGE
from pydvl_datainf.demo.settings import DemoSettings
from pydvl_datainf.report import is_report
from pydvl_datainf.results.differing import differences
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Store

SCORES = "influences.zarr"
ROC_PLOT = "roc_curves.png"
DISTRIBUTION_PLOT = "score_distributions.png"
REPORT = "report.html"
PLOTS = frozenset({ROC_PLOT, DISTRIBUTION_PLOT})
SHOWN = PLOTS | {REPORT}
"""What is made anew from the scores each time."""
FILES = SHOWN | {SCORES}
LOCK = f"{SCORES}.lock"
BANKS = f"{SCORES}.bank*"
"""What `validate_demo` keeps beside the scores, and its locks."""
REPLACED, UNFINISHED = f".{SCORES}.*.old", f".{REPORT}.*.part"
"""What the lock of a store, a store that was being deleted, or a report that was being written, is
called; it stays where the process was killed."""


def origin(settings: DemoSettings) -> dict[str, Any]:
    """What decides the result of the demo, on one machine.

    Args:
        settings: sizes, rates and seed.

    Returns:
        Entries of the run's metadata.
    """
    return {
        "settings": asdict(settings),
        "model": {"package": MODEL_PACKAGE, "sha256": MODEL_SHA256},
        "reviews": REVIEWS_PACKAGE,
    }


def begun_run(out: Path, settings: DemoSettings, overwrite: bool) -> InfluenceRun | None:
    """The run in a folder of results that has these settings.

    Args:
        out: the folder, which need not exist.
        settings: sizes, rates and seed.
        overwrite: whether a result of other settings may be replaced.

    Returns:
        The run, complete or not; None where a new one is to be made.

    Raises:
        OutputError: if `out` is a file, holds what the demo does not write, or a result of other
            settings that may not be replaced.
        StoreExistsError: if the store is something else than a run.
    """
    found = _checked_names(out)
    store = Store(out / SCORES)
    if store.is_vacant():
        if found & SHOWN and not overwrite:
            raise OutputError(
                f"{out} holds the plots or the report of an earlier result, but not its scores; "
                "choose another folder for the results, or replace them with --overwrite."
            )
        return None
    run = InfluenceRun(store)
    other = _other_origin(run, settings)
    if other and not overwrite:
        raise OutputError(
            f"{out} holds an earlier result of other settings ({'; '.join(other)}); choose another "
            "folder for the results, or replace it with --overwrite."
        )
    return None if other else run


def delete_earlier(out: Path) -> None:
    """Deletes the plots, the report and the retrainings of an earlier result, if there are any."""
    for name in SHOWN:
        (out / name).unlink(missing_ok=True)
    for path in out.glob(BANKS):
        if path.is_dir():
            shutil.rmtree(path)


def _checked_names(out: Path) -> set[str]:
    if not out.exists():
        return set()
    if not out.is_dir():
        raise OutputError(f"{out} is a file; choose another folder for the results.")
    paths = list(out.iterdir())
    foreign = sorted(p.name for p in paths if not _is_ours(p))
    if foreign:
        raise OutputError(
            f"{out} holds what this command does not write ({foreign[0]}, for one), so it is never "
            "replaced; choose another folder for the results."
        )
    return {path.name for path in paths}


def _is_ours(path: Path) -> bool:
    if path.name == REPORT:
        return is_report(path)
    patterns = (REPLACED, UNFINISHED, BANKS)
    return path.name in FILES | {LOCK} or any(map(path.match, patterns))


def _other_origin(run: InfluenceRun, settings: DemoSettings) -> list[str]:
    wanted, told = origin(settings), run.metadata("run")
    if not told.keys() >= wanted.keys() or type(told["settings"]) is not dict:
        raise OutputError(
            f"{run!r} is not of this demo, so it is never replaced; choose another folder for the "
            "results."
        )
    return differences(_flat(told, wanted), _flat(wanted, wanted))


def _flat(told: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting by itself, so that differences are told with their values."""
    return {**told["settings"], **{n: told[n] for n in names if n != "settings"}}
