"""Trains again on subsets of the data, wherever executors work, into a bank."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, TypeAlias

import numpy as np
from distributed import Client
from tqdm.auto import tqdm

from pydvl_datainf.errors import ClusterError, NonFiniteError, ObjectiveError, PlanError
from pydvl_datainf.evaluation import Floats, Indices, Mask, as_array
from pydvl_datainf.runner.executors import Executor, executor_for
from pydvl_datainf.yardstick.bank import FULL, HALVES, REMOVALS, Bank, Cell, complete_subsets
from pydvl_datainf.yardstick.statistics import expected_error
from pydvl_datainf.yardstick.subsets import checked_count, half_subsets

Train: TypeAlias = Callable[[Indices, int], Floats]
"""Trains on some samples (ascending positions, (k,)) with a seed; returns the test losses, (m,)."""

FEWEST, MOST = 10, 1000
"""Subsets: with fewer no score can be told from none; more are never chosen by time."""

LARGEST = 1e100
"""A loss; squares of larger ones overflow when lines are fitted."""

ASKED = 50
"""Subsets, where neither a number nor a time is given."""


@dataclass(frozen=True, slots=True)
class RetrainingTask:
    """One piece of work.

    Attributes:
        cell: subset and seed.
        members: which samples to train on, (n,).
        m: how many losses are expected.
    """

    cell: Cell
    members: Mask
    m: int


def retrain(work: RetrainingTask, train: Train) -> tuple[Cell, Floats, float]:
    """Trains once.

    Args:
        work: on what, with which seed.
        train: the caller's function.

    Returns:
        Subset and seed, losses (m,), and seconds taken.

    Raises:
        ObjectiveError: if there are not m numbers.
        NonFiniteError: if a loss is infinite or NaN, or larger than any that did not diverge.
    """
    k, seed = work.cell
    began = time.monotonic()
    losses = np.asarray(as_array(train(np.flatnonzero(work.members), seed)))
    seconds = time.monotonic() - began
    what = f"Training on {work.members.sum():,} samples (subset {k}) with seed {seed}"
    if losses.shape != (work.m,) or losses.dtype.kind not in "iuf":
        raise ObjectiveError(
            f"{what} gave {losses.dtype} of shape {losses.shape}; train(indices, seed) returns the "
            f"loss of each of the {work.m} test samples, or groups of them."
        )
    # A comparison with NaN is false, too.
    wrong = np.flatnonzero(~(np.abs(losses.astype(np.float64)) <= LARGEST))
    if wrong.size:
        raise NonFiniteError(
            f"{what} gave {wrong.size} losses that are not finite, or larger than {LARGEST:g}, "
            f"test sample {wrong[0]} first. "
            "Train with a smaller step; what was done before is in the bank.",
            int(wrong[0]),
        )
    return work.cell, losses.astype(np.float64), seconds


def retrain_on_halves(
    bank: Bank,
    train: Train,
    predicted: Callable[[Mask], Floats],
    *,
    subsets: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> int:
    """Makes those retrainings on random halves that are not in a bank.

    Args:
        bank: where losses are kept.
        train: the caller's function; picklable, where other processes work.
        predicted: changes of loss for subsets, (M, n) to (m, M), to tell what a budget can see.
        subsets: how many; None = as many as `minutes` allow, or 50.
        seeds: 0, 1, ... of each subset.
        minutes: what it may take about, as measured by the first retrainings.
        client: as in `run_influences`.
        n_jobs: as in `run_influences`.
        progress: whether to tell beforehand how long it takes, and to show a bar.

    Returns:
        How many subsets, from the first, there are to be used.

    Raises:
        PlanError: if there would be too few subsets, or both a number and a time are given.
        ClusterError: if workers cannot be reached or were lost.
    """
    asked, seeds = _check_budget(subsets, minutes), checked_count(seeds, "seeds")
    with _at_work(bank, client, n_jobs, progress) as executor:
        bank.extend(asked or 1, seeds)
        done, shared = bank.done(HALVES), [executor.share(train)]
        there = complete_subsets(done, seeds)
        count = asked or there + 1
        members = bank.extend(count, seeds)
        at_once = executor.at_once
        first = _missing(done, range(count), seeds)[:at_once]  # measured by some that are needed
        seconds = sum(_train(bank, HALVES, members, first, executor, shared)) / max(len(first), 1)
        if minutes is not None:
            count = _affordable(60 * minutes * at_once, seconds, there, seeds)
            members = bank.extend(count, seeds)
        cells = _missing(done.union(first), range(count), seeds)
        if progress and cells:
            error = expected_error(predicted(half_subsets(bank.n, 200, 0)), count)
            _tell(len(cells), seconds, at_once, count, error)
        for _ in _train(bank, HALVES, members, cells, executor, shared):
            pass
    return count


def retrain_on_all(
    bank: Bank,
    train: Train,
    *,
    seeds: int = 2,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Floats:
    """Makes those retrainings on all samples that are not in a bank.

    Args:
        bank: where losses are kept.
        train: as in `retrain_on_halves`.
        seeds: 0, 1, ..., how many.
        client: as in `run_influences`.
        n_jobs: as in `run_influences`.
        progress: whether to show a bar.

    Returns:
        Test losses, (S, m).

    Raises:
        ClusterError: if workers cannot be reached or were lost.
    """
    seeds = checked_count(seeds, "seeds")
    with _at_work(bank, client, n_jobs, progress) as executor:
        bank.extend(1, seeds)
        every = {0: np.ones(bank.n, dtype=bool)}
        cells = _missing(bank.done(FULL), every, seeds)
        for _ in _train(bank, FULL, every, cells, executor, [executor.share(train)]):
            pass
    return bank.full_losses(seeds)


def retrain_without(
    bank: Bank,
    train: Train,
    removed: Mask,
    *,
    seeds: int = 2,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Floats:
    """Makes those retrainings without some samples that are not in a bank.

    Args:
        bank: where losses are kept.
        train: as in `retrain_on_halves`.
        removed: which samples are left out each time, (r, n).
        seeds: 0, 1, ..., how many.
        client: as in `run_influences`.
        n_jobs: as in `run_influences`.
        progress: whether to show a bar.

    Returns:
        Test losses, (r, S, m).

    Raises:
        ClusterError: if workers cannot be reached or were lost.
    """
    seeds = checked_count(seeds, "seeds")
    with _at_work(bank, client, n_jobs, progress) as executor:
        places = bank.add_removals(removed, seeds)
        members = dict(zip(places, ~removed, strict=True))
        cells = _missing(bank.done(REMOVALS), members, seeds)
        for _ in _train(bank, REMOVALS, members, cells, executor, [executor.share(train)]):
            pass
    return bank.removal_losses(places, seeds)


@contextmanager
def _at_work(
    bank: Bank, client: Client | str | None, n_jobs: int | None, progress: bool
) -> Iterator[Executor]:
    """What does the work, while other calls are kept off the bank."""
    executor = executor_for(client, n_jobs, progress)
    try:
        with bank.locked():
            yield executor
    finally:
        executor.close()


def _check_budget(subsets: int | None, minutes: float | None) -> int | None:
    """How many subsets are asked for; None where time decides."""
    if subsets is not None and minutes is not None:
        raise PlanError("Pass subsets or minutes, not both.")
    if minutes is not None:
        if not (0 < minutes < np.inf):
            raise PlanError(f"minutes must be a positive number, got {minutes}.")
        return None
    count = ASKED if subsets is None else checked_count(subsets, "subsets", least=0)
    if count < FEWEST:
        raise PlanError(
            f"{count} subsets are too few to tell a score from none; ask for {FEWEST} or more, "
            f"such as {ASKED}."
        )
    return count


def _affordable(seconds: float, each: float, there: int, seeds: int) -> int:
    """How many subsets a bank can have after so many seconds of one worker."""
    count = min(max(there, MOST), there + int(seconds / max(each, 1e-9)) // seeds)
    if count < FEWEST:
        needed = (FEWEST - there) * seeds * each / seconds
        raise PlanError(
            f"A retraining takes {_duration(each)}, so that the time is enough for {count} of the "
            f"subsets, with {seeds} seeds, and fewer than {FEWEST} tell nothing: give "
            f"{ceil(10 * needed) / 10:.1f} times as many "
            "minutes, or more workers. What was trained is kept."
        )
    return count


def _missing(done: set[Cell], subsets: Iterable[int], seeds: int) -> list[Cell]:
    """In the order of subsets: those of a stopped call are then complete from the first on."""
    return [cell for cell in product(subsets, range(seeds)) if cell not in done]


def _train(
    bank: Bank,
    name: str,
    members: Mask | Mapping[int, Mask],
    cells: Sequence[Cell],
    executor: Executor,
    shared: Sequence[Any],
) -> Iterator[float]:
    """Trains and keeps losses as they come; yields seconds."""
    if not cells:  # no bar of nothing
        return
    items = [RetrainingTask(cell, members[cell[0]], bank.m) for cell in cells]
    try:
        for cell, losses, seconds in executor.map(retrain, items, shared, "retraining"):
            bank.write(name, cell, losses)
            yield seconds
    except ClusterError as error:
        raise ClusterError(
            f"Workers were lost ({error.__cause__ or error}). What was trained is in the bank: "
            "make the same call again, with fewer workers where memory was short, to go on."
        ) from error


def _tell(left: int, seconds: float, at_once: int, subsets: int, error: float) -> None:
    together = f", {at_once} at once" if at_once > 1 else ""
    took = seconds * -(-left // at_once)
    tqdm.write(
        f"{left:,} retrainings of {_duration(seconds)}{together}: about {_duration(took)}. "
        f"{subsets} subsets tell a linear datamodelling score to about ±{error:.3f}: differences "
        f"of {2 * error:.3f} between methods can be seen.",
        file=sys.stderr,
    )


def _duration(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes"), (1, "seconds")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.2g} seconds"
