"""Waits for a Dask cluster, says what is missing while nothing goes on, and gives up in the end.

A scheduler waits for its workers for ever unless it was started with other settings, and a client
cannot set them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from time import monotonic
from typing import Any, TypeVar
from warnings import warn

import distributed
from distributed import Client

from pydvl_datainf.errors import ClusterError
from pydvl_datainf.terminal import some

SAY_AFTER = 60.0
"""Seconds without anybody at work after which it is said what is missing."""
GIVE_UP_AFTER = 600.0
"""Seconds without anybody at work after which a run ends; Dask itself lets go of a worker that has
been silent for 300 (`distributed.scheduler.worker-ttl`), and gives its tasks to others."""
SILENT_AFTER = 20.0
"""Seconds after which a worker that has not been heard counts as silent: 40 of its signs of life,
or 4 in a cluster of hundreds."""
ANSWER_WITHIN = 10.0
"""Seconds that a scheduler is given to answer a question."""

Result = TypeVar("Result")


def within(seconds: float, call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """What a call returns; those of Dask wait for ever.

    Args:
        seconds: that the call may take.
        call: a function.
        *arguments: of it.
        **options: of it.

    Returns:
        What it returns; a TimeoutError is raised if it takes longer.
    """
    return _asked(call, *arguments, **options).result(seconds)


def _asked(call: Callable[..., Result], *arguments: Any, **options: Any) -> "Future[Result]":
    answer: Future[Result] = Future()

    def ask() -> None:
        try:
            answer.set_result(call(*arguments, **options))
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()  # of a pool, Python would wait for it at its exit
    return answer


class Watch:
    """Knows which workers of a cluster are heard of.

    Args:
        client: of the cluster.
    """

    def __init__(self, client: Client):
        self.client: Any = client
        self._heard: dict[str, tuple[float, float]] = {}
        self._well = monotonic()
        self._looked = self._well
        self._is_said = False

    def workers(self) -> Mapping[str, Any]:
        """What the scheduler knows of each worker, by address.

        Returns:
            Empty where there are none.

        Raises:
            ClusterError: if it does not answer.
        """
        try:
            answer = within(ANSWER_WITHIN, self.client.scheduler_info, n_workers=-1)
        except (OSError, RuntimeError) as error:  # a TimeoutError is an OSError
            raise ClusterError(
                f"The Dask scheduler does not answer ({type(error).__name__} {error}). See to it, "
                "and call run_influences again with the same arguments."
            ) from error
        known: dict[str, Any] = answer.get("workers", {})
        now = monotonic()
        for address, worker in known.items():
            last, _ = self._heard.get(address, (None, now))
            if worker["last_seen"] != last:
                self._heard[address] = worker["last_seen"], now
        return known

    def silent(self, workers: Collection[str]) -> list[str]:
        """Those of some workers that have not been heard of."""
        now = monotonic()
        return sorted(a for a in workers if now - self._heard[a][1] >= SILENT_AFTER)

    def answers(self, call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """What all workers answer; says who does not after a while, and then gives up.

        Args:
            call: asks them.
            *arguments: of it.
            **options: of it.

        Returns:
            What it returns.

        Raises:
            ClusterError: if it takes too long.
        """
        answer, rest = _asked(call, *arguments, **options), GIVE_UP_AFTER - SAY_AFTER
        with suppress(TimeoutError):
            return answer.result(SAY_AFTER)
        silent = some(self.silent(self.workers()), 3)
        told = f"Workers do not answer ({silent or 'it is not known which'})."
        warn(f"{told} Waiting for another {rest:.0f} seconds.", RuntimeWarning, stacklevel=2)
        with suppress(TimeoutError):
            return answer.result(rest)
        raise ClusterError(f"{told} See to them or end them, and call run_influences again.")

    def goes_on(self) -> None:
        """Notes that something was finished."""
        self._well, self._is_said = monotonic(), False

    def check(self, tasks: Collection[str]) -> None:
        """Says what is missing after a while without anybody at work, and then gives up.

        Args:
            tasks: that are waited for.

        Raises:
            ClusterError: if it is given up.
        """
        now = monotonic()
        if now - self._looked < min(5.0, SAY_AFTER / 4):
            return
        self._looked = now
        missing = self._missing(tasks)
        if missing is None:
            self.goes_on()
        elif now - self._well >= GIVE_UP_AFTER:
            raise ClusterError(
                f"Nothing has gone on for {now - self._well:.0f} seconds: {missing}. What is done "
                "is in the store: see to the cluster, and call run_influences again with the same "
                "arguments to go on."
            )
        elif now - self._well >= SAY_AFTER and not self._is_said:
            self._is_said = True
            warn(
                f"Nothing has gone on for {now - self._well:.0f} seconds: {missing}. Waiting for "
                f"another {GIVE_UP_AFTER + self._well - now:.0f} seconds.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _missing(self, tasks: Collection[str]) -> str | None:
        """Why nobody is at work; None if somebody is, or will be."""
        waiting = f"{len(tasks)} tasks are waiting"
        try:
            known = self.workers()
            given = within(ANSWER_WITHIN, self.client.processing)
        except (ClusterError, OSError):
            return f"the Dask scheduler does not answer, and {waiting}"
        if not known:
            return f"the cluster has no workers, and {waiting}"
        silent = self.silent(known)
        if len(silent) == len(known):
            return f"all workers are silent ({some(silent, 3)}), and {waiting}"
        held = {key for address in silent for key in given.get(address, ())}
        if len(held.intersection(tasks)) < len(tasks):
            return None
        return f"{waiting} for workers that are silent ({some(silent, 3)})"


def finished(client: Client, futures: Sequence[Any]) -> Iterator[Any]:
    """Tasks with their results, as they finish.

    Args:
        client: of their cluster.
        futures: the tasks.

    Yields:
        What they returned.

    Raises:
        ClusterError: if the scheduler is lost, or nobody has been at work for too long.
    """
    watch, waiting = Watch(client), {future.key for future in futures}
    done: Any = _as_completed(futures, loop=client.loop, with_results=True)
    while waiting:
        if not done.has_ready():
            with done.thread_condition:  # as Dask's own iteration does
                done.thread_condition.wait(timeout=0.1)
            watch.check(waiting)
            continue
        future, result = next(done)
        waiting.discard(future.key)
        if isinstance(result, BaseException):
            raise ClusterError(
                f"The cluster has dropped the work: {result}. What is done is in the store: see "
                "to the scheduler, and call run_influences again with the same arguments to go on."
            ) from result
        future.release()
        yield result
        watch.goes_on()


_as_completed: Any = distributed.as_completed
