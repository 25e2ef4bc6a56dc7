"""Has pieces of work done in processes of joblib, which share files in a temporary folder."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import cloudpickle
import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend

from pydvl_datainf.errors import ClusterError, PlanError
from pydvl_datainf.results.locking import own_folder, release, remove_abandoned
from pydvl_datainf.runner.executors.in_process import Item, Result, bar_of

FOLDERS, FILES = "pydvl-datainf-joblib-", ".shared"
"""How temporary folders begin, and the files in them end, that joblib's processes share."""


class Joblib:
    """Worker processes of joblib's active backend.

    Args:
        n_jobs: how many, as in joblib.
        progress: whether to show bars.

    Raises:
        PlanError: if the backend uses threads.
    """

    shares_memory = False

    def __init__(self, n_jobs: int | None, progress: bool):
        backend, _ = get_active_backend()
        if getattr(backend, "supports_sharedmem", False):
            raise PlanError(
                f"joblib's active backend, {type(backend).__name__}, runs threads, and one model "
                'cannot be watched by several. Use joblib.parallel_config(backend="loky").'
            )
        self.n_jobs = n_jobs
        self.progress = progress
        remove_abandoned(FOLDERS, FILES)
        self.lock, self.folder = own_folder(FOLDERS)
        self.threads = max(1, torch.get_num_threads() // joblib.effective_n_jobs(n_jobs))
        self.lazily = "generator_unordered" if backend.supports_return_generator else "list"

    @property
    def at_once(self) -> int:
        """How many processes there are."""
        return joblib.effective_n_jobs(self.n_jobs) or 1

    def share(self, value: Any) -> Path:
        """A file with the object, which each process reads once."""
        path = self.folder / f"{uuid.uuid4().hex}{FILES}"
        with path.open("wb") as file:
            cloudpickle.dump(value, file)
        return path

    def map(
        self,
        work: Callable[..., Result],
        items: Sequence[Item],
        shared: Sequence[Any],
        what: str,
    ) -> Iterator[Result]:
        """Does the work in processes that share this machine's cores.

        Yields:
            Results.

        Raises:
            ClusterError: if a process died.
        """
        parallel = joblib.Parallel(n_jobs=self.n_jobs, return_as=self.lazily)
        call, known = joblib.delayed(_from_files), (self.threads, os.getpid(), self.folder)
        calls = (call(*known, work, item, shared) for item in items)
        try:
            yield from bar_of(parallel(calls), what, len(items), self.progress)
        except TerminatedWorkerError as error:
            raise ClusterError(
                "A worker process died, perhaps for want of memory. What is done is in the store: "
                "call run_influences again with the same arguments, and fewer processes (n_jobs), "
                "to go on."
            ) from error

    def close(self) -> None:
        """Deletes the files."""
        release(self.lock, self.folder)


def _from_files(
    threads: int,
    parent: int,
    folder: Path,
    work: Callable[..., Result],
    item: Any,
    shared: Sequence[Path],
) -> Result:
    _end_with(parent)
    torch.set_num_threads(threads)
    _choose_card(folder)
    return work(item, *(_unpickled(path) for path in shared))


@lru_cache(maxsize=1)  # once for each run: the processes may outlive it
def _choose_card(folder: Path) -> None:
    """Makes the cards of this machine the current ones of the processes of a run, in turn."""
    number = next(number for number in count() if _is_mine(folder / f"{number}{FILES}"))
    lazily: Any = torch.cuda._lazy_call  # a process that computes on a CPU shall not start a card
    lazily(lambda: torch.cuda.set_device(number % torch.cuda.device_count()))


def _is_mine(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@lru_cache(maxsize=2)  # the inputs and the job
def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return cloudpickle.load(file)


@cache
def _end_with(parent: int) -> None:
    """Ends this process soon after its parent: what it writes then is in the way of later runs."""
    if os.getppid() == parent:  # not so in a worker of a cluster, on which joblib can run too
        Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
