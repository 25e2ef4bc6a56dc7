"""Where pieces of work are done: in this process, in processes of joblib, or on a Dask cluster.

An executor knows nothing of influences. Objects that all pieces of work need are shared: they go to
each process once. Processes, never threads: a model is watched while it computes.
"""

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cloudpickle
import distributed
import joblib
import torch
from distributed import Client
from distributed.scheduler import KilledWorker, NoWorkerError
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend
from tqdm.auto import tqdm

from pydvl_datainf._version import __version__
from pydvl_datainf.errors import ClusterError, DataInfError, PlanError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 2
"""How often a piece of work is tried again after an error that is not ours."""


class Executor(Protocol):
    """Does independent pieces of work."""

    keeps_state: bool
    """Whether a process that did one piece of work can be given the next of its kind."""
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
        home: Callable[[Item], int] | None = None,
    ) -> Iterator[Result]:
        """Calls `work(item, *shared)` for each item; yields results as they come, in any order.

        Args:
            work: a function of a module.
            items: one for each piece of work.
            shared: what `share` returned.
            what: how the progress bar calls the work.
            home: pieces of work with the same number go to the same process where that is possible.
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

    keeps_state = True
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
        home: Callable[[Item], int] | None = None,
    ) -> Iterator[Result]:
        """Does the work in the order of the items."""
        for item in _bar(items, what, len(items), self.progress):
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

    keeps_state = False
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
        self.folder = Path(tempfile.mkdtemp(prefix="pydvl-datainf-"))
        self.threads = max(1, torch.get_num_threads() // joblib.effective_n_jobs(n_jobs))
        self.lazily = "generator_unordered" if backend.supports_return_generator else "list"

    def share(self, value: Any) -> Path:
        """A file with the object, which each process reads once."""
        path = self.folder / uuid.uuid4().hex
        with path.open("wb") as file:
            cloudpickle.dump(value, file)
        return path

    def map(
        self,
        work: Callable[..., Result],
        items: Sequence[Item],
        shared: Sequence[Any],
        what: str,
        home: Callable[[Item], int] | None = None,
    ) -> Iterator[Result]:
        """Does the work in processes that share this machine's cores.

        Yields:
            Results.

        Raises:
            ClusterError: if a process died.
        """
        parallel = joblib.Parallel(n_jobs=self.n_jobs, return_as=self.lazily)
        calls = (joblib.delayed(_from_files)(self.threads, work, i, shared) for i in items)
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
        shutil.rmtree(self.folder, ignore_errors=True)


def _from_files(
    threads: int, work: Callable[..., Result], item: Any, shared: Sequence[Path]
) -> Result:
    torch.set_num_threads(threads)
    return work(item, *(_unpickled(path) for path in shared))


@lru_cache(maxsize=2)  # the inputs and the job
def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return cloudpickle.load(file)


class Dask:
    """Workers of a Dask cluster.

    Args:
        client: connected to it, or the address of its scheduler.
        progress: whether to show bars.

    Raises:
        ClusterError: if it cannot be reached or has no workers, or any has several threads, or not
            this version of this package.
    """

    keeps_state = True
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
        home: Callable[[Item], int] | None = None,
    ) -> Iterator[Result]:
        """Does the work on the workers; tasks of lost workers are done again elsewhere.

        Yields:
            Results.

        Raises:
            ClusterError: if the cluster lost the work too often.
        """
        addresses = self._addresses
        futures = [
            self.client.submit(
                _attempted,
                work,
                item,
                [future.key for future in shared],
                *shared,
                pure=False,
                retries=RETRIES,
                workers=[addresses[home(item) % len(addresses)]] if home else None,
                allow_other_workers=home is not None,  # for when that worker is lost
            )
            for item in items
        ]
        try:
            finished: Any = _as_completed(futures, loop=self.client.loop, with_results=True)
            for future, (error, result) in _bar(finished, what, len(items), self.progress):
                future.release()
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
            self.client.cancel(futures)
            raise

    def close(self) -> None:
        """Releases what was shared, and closes the connection if it is our own."""
        for future in self._shared:
            future.release()
        if self._shared and self.client.status == "running":
            self.client.run(_forget, [future.key for future in self._shared], on_error="ignore")
        if self._is_own:
            self.client.close()

    def _check_workers(self) -> None:
        if self.client.status != "running":
            raise ClusterError(
                f"The Dask client is {self.client.status}. Connect one to a scheduler that is "
                "running."
            )
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
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
        self._addresses = sorted(workers)
        for address, version in self._versions().items():
            if version != __version__:
                raise ClusterError(
                    f"Worker {address} has pydvl-datainf {version}, and this process has "
                    f"{__version__}. Install the same version on all workers."
                )

    def _versions(self) -> dict[str, Any]:
        # As text: a function of ours could not even be sent to a worker without the package.
        asked = self.client.run(eval, "__import__('pydvl_datainf').__version__", on_error="return")
        return {a: "none" if isinstance(v, Exception) else v for a, v in asked.items()}


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


# Untyped in distributed.
_as_completed: Any = distributed.as_completed
_Client: Any = distributed.Client


def _connected(address: str) -> Any:
    try:
        return _Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"No Dask scheduler answers at {address}: {error}") from error


def _bar(items: Any, what: str, total: int, progress: bool) -> Any:
    return tqdm(items, what, total, leave=False, disable=not progress)
