"""Has pieces of work done by the workers of a Dask cluster."""

import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from distributed import Client
from distributed.scheduler import KilledWorker, NoWorkerError

from pydvl_datainf._version import __version__
from pydvl_datainf.errors import ClusterError, DataInfError
from pydvl_datainf.runner.executors.in_process import Item, Result, bar_of
from pydvl_datainf.runner.waiting import ANSWER_WITHIN, Watch, finished, within

RETRIES = 2
"""How often a piece of work is tried again after an error that is not ours."""


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

    @property
    def at_once(self) -> int:
        """How many workers the cluster has now."""
        return len(Watch(self.client).workers())

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
            with bar_of(results, what, len(items), self.progress) as bar:
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


_Client: Any = Client  # untyped in distributed


def _connected(address: str) -> Any:
    try:
        return _Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"No Dask scheduler answers at {address}: {error}") from error
