"""Where pieces of work are done: in this process, in processes of joblib, or on a Dask cluster.

An executor knows nothing of influences. Objects that all pieces of work need are shared: they go to
each process once. Processes, never threads: a model is watched while it computes.
"""

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeVar

import cloudpickle
import joblib
import torch
from distributed import Client
from distributed.scheduler import KilledWorker, NoWorkerError
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend
from tqdm.auto import tqdm

from pydvl_datainf._version import __version__
from pydvl_datainf.errors import ClusterError, DataInfError, PlanError
from pydvl_datainf.results.locking import own_folder, release, remove_abandoned
from pydvl_datainf.runner.waiting import ANSWER_WITHIN, Watch, finished, within

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 2
"""How often a piece of work is tried again after an error that is not ours."""

FOLDERS, FILES = "pydvl-datainf-joblib-", ".shared"
"""How temporary folders begin, and the files in them end, that joblib's processes share."""


class Executor(Protocol):
    """Does independent pieces of work."""

    shares_memory: bool
    """Whether the work is done in this process."""

    def share(self, value: Any) -> Any:
        """Makes an object available to all processes; it is sent to each of them once."""
        ...

    def map(
        self,
        work: Callable[..., Result],
        items: Sequence[Item],
        shared: Sequence[Any],
        what: str,
    ) -> Iterator[Result]:
        """Calls `work(item, *shared)` for each item; yields results as they come, in any order.

        Args:
            work: a function of a module.
            items: one for each piece of work.
            shared: what `share` returned.
            what: how the progress bar calls the work.
        """
        ...

    def close(self) -> None:
        """Forgets what was shared."""
        ...


class InProcess:
    """One piece of work after the other, here: the reference for the others.

    Args:
        progress: whether to show bars.
    """

    shares_memory = True

    def __init__(self, progress: bool):
        self.progress = progress

    def share(self, value: Any) -> Any:
        """The object itself."""
        return value

    def map(
        self,
        work: Callable[..., Result],
        items: Sequence[Item],
        shared: Sequence[Any],
        what: str,
    ) -> Iterator[Result]:
        """Does the work in the order of the items."""
        with _bar(items, what, len(items), self.progress) as bar:
            for item in bar:
                yield work(item, *shared)

    def close(self) -> None:
        """Nothing to forget."""


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
            yield from _bar(parallel(calls), what, len(items), self.progress)
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


class Dask:
    """Workers of a Dask cluster.

    Args:
        client: connected to it, or the address of its scheduler.
        progress: whether to show bars.

    Raises:
        ClusterError: if it cannot be reached or has no workers, or any has several threads, or not
            this version of this package.
    """

    shares_memory = False

    def __init__(self, client: Client | str, progress: bool):
        self.progress = progress
        self._shared: list[Any] = []
        self._is_own = isinstance(client, str)
        self.client: Any = _connected(client) if isinstance(client, str) else client
        try:
            self._check_workers()
        except ClusterError:
            self.close()
            raise

    def share(self, value: Any) -> Any:
        """A future, made by a task: unlike scattered data it is made again if its workers die."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
            key = f"pydvl-datainf-{uuid.uuid4().hex}"
            self._shared.append(self.client.submit(_unchanged, value, key=key, retries=RETRIES))
        return self._shared[-1]

    def map(
        self,
        work: Callable[..., Result],
        items: Sequence[Item],
        shared: Sequence[Any],
        what: str,
    ) -> Iterator[Result]:
        """Does the work on the workers; tasks of lost workers are done again elsewhere.

        Yields:
            Results.

        Raises:
            ClusterError: if the cluster lost the work too often, or nobody is at work for long.
        """
        futures = [
            self.client.submit(
                _attempted,
                work,
                item,
                [future.key for future in shared],
                *shared,
                pure=False,
                retries=RETRIES,
            )
            for item in items
        ]
        try:
            results = finished(self.client, futures)
            with _bar(results, what, len(items), self.progress) as bar:
                for error, result in bar:
                    if error is not None:
                        raise error
                    yield result
        except (KilledWorker, NoWorkerError) as error:
            raise ClusterError(
                f"The cluster gave up: {error} What is done is in the store: start workers with "
                "more memory (or pass a smaller memory), and call run_influences again with the "
                "same arguments to go on."
            ) from error
        except BaseException:
            with suppress(TimeoutError):
                within(ANSWER_WITHIN, self.client.cancel, futures)
            raise

    def close(self) -> None:
        """Releases what was shared, and closes the connection if it is our own."""
        for future in self._shared:
            future.release()
        keys = [future.key for future in self._shared]
        with suppress(TimeoutError, OSError):
            if keys and self.client.status == "running":
                within(ANSWER_WITHIN, self.client.run, _forget, keys, on_error="ignore")
        if self._is_own:
            self.client.close(timeout=ANSWER_WITHIN)

    def _check_workers(self) -> None:
        if self.client.status != "running":
            raise ClusterError(
                f"The Dask client is {self.client.status}. Connect one to a scheduler that is "
                "running."
            )
        watch = Watch(self.client)
        workers = watch.workers()
        if not workers:
            raise ClusterError(
                "The Dask cluster has no workers. Start some: dask worker ADDRESS --nthreads 1."
            )
        threaded = [address for address, worker in workers.items() if worker["nthreads"] != 1]
        if threaded:
            raise ClusterError(
                f"{len(threaded)} Dask workers have more than one thread ({threaded[0]}, for one), "
                "and one model cannot be watched by several. Start them with --nthreads 1, or "
                "LocalCluster(threads_per_worker=1), one for each core."
            )
        for address, version in self._versions(watch).items():
            if isinstance(version, Exception) and not isinstance(version, ImportError):
                raise ClusterError(
                    f"Worker {address} was lost when it was asked for its version: {version!r}. "
                    "See why it ended, wait until it is back, and call run_influences again."
                )
            if version != __version__:
                found = "none" if isinstance(version, ImportError) else version
                raise ClusterError(
                    f"Worker {address} has pydvl-datainf {found}, and this process has "
                    f"{__version__}. Install the same version on all workers."
                )

    def _versions(self, watch: Watch) -> dict[str, Any]:
        # As text: a function of ours could not even be sent to a worker without the package.
        text = "__import__('pydvl_datainf').__version__"
        return watch.answers(self.client.run, eval, text, on_error="return")


def _unchanged(value: Any) -> Any:
    return value


_here: dict[str, Any] = {}
"""What this worker was given. Dask drops copies that it believes superfluous, and sends others."""


def _forget(keys: Sequence[str]) -> None:
    for key in keys:
        _here.pop(key, None)


def _attempted(
    work: Callable[..., Result], item: Any, keys: Sequence[str], *shared: Any
) -> tuple[Any, Any]:
    """Our own errors come back as results: they would only be raised again by a retry."""
    kept = [_here.setdefault(key, value) for key, value in zip(keys, shared, strict=True)]
    try:
        return None, work(item, *kept)
    except DataInfError as error:
        return error, None


def executor_for(client: Client | str | None, n_jobs: int | None, progress: bool) -> Executor:
    """Chooses where the work is done.

    Args:
        client: a Dask client or a scheduler's address.
        n_jobs: worker processes, as in joblib; None = one, unless a surrounding
            `joblib.parallel_config` says otherwise.
        progress: whether to show bars.

    Returns:
        The executor.

    Raises:
        PlanError: if both are given.
        ClusterError: if the cluster cannot be reached or does not suit.
    """
    if client is None:
        one = joblib.effective_n_jobs(n_jobs) == 1
        return InProcess(progress) if one else Joblib(n_jobs, progress)
    if n_jobs is not None:
        raise PlanError("Pass client or n_jobs, not both.")
    return Dask(client, progress)


_Client: Any = Client  # untyped in distributed


def _connected(address: str) -> Any:
    try:
        return _Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"No Dask scheduler answers at {address}: {error}") from error


def _bar(items: Any, what: str, total: int, progress: bool) -> Any:
    """To be closed before an error is told, which would stand on its line."""
    return tqdm(items, what, total, leave=False, disable=not progress)
