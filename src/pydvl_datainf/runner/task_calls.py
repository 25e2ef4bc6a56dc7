"""Has the tasks of a run done, wherever that is, and keeps in its store what they cost."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Self

from pydvl_datainf.errors import StoreError
from pydvl_datainf.results.chunks import Chunk
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.executors import Executor
from pydvl_datainf.runner.tasks import Context, RunSpec


@dataclass
class TaskCalls:
    """The calls of tasks of one run.

    Args:
        executor: does the work.
        store: of the run.
        spec: what it is.
        shared: the context and the inputs, as the executor shares them.
        seconds: how long each stage took so far; added to.
        gradients: how many were computed so far; added to.
        is_new: whether anything was missing.
    """

    executor: Executor
    store: Store
    spec: RunSpec
    shared: Sequence[Any]
    seconds: dict[str, float]
    gradients: int
    is_new: bool = field(default=False, init=False)

    @classmethod
    def of(cls, store: Store, spec: RunSpec, executor: Executor, inputs: Any) -> Self:
        """Goes on from what a run in its store has cost so far.

        Args:
            store: of the run.
            spec: what it is.
            executor: does the work.
            inputs: as the executor shares them; None = tasks need neither model nor data.

        Returns:
            The calls.
        """
        told = store.attributes
        shared = [executor.share(Context(spec)), inputs]
        return cls(executor, store, spec, shared, dict(told["seconds"]), told["gradients"])

    @property
    def has_inputs(self) -> bool:
        """Whether tasks have model and data."""
        return self.shared[1] is not None

    def map(self, what: str, task: Callable[..., None], items: Sequence[Any]) -> None:
        """Does a task for each of some items.

        Args:
            what: the name of the stage.
            task: of `runner.tasks`.
            items: what it is to do; where there are none, nothing is written.
        """
        if not items:
            return
        self.take_over()
        start = perf_counter()
        calls = [(task, item) for item in items]
        try:
            for gradients in self.executor.map(tasks.perform, calls, self.shared, what):
                self.gradients += gradients
        except BaseException:
            with suppress(StoreError):  # which would take the place of the cause
                self._tell_cost(what, perf_counter() - start)
            raise
        self._tell_cost(what, perf_counter() - start)

    def _tell_cost(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds
        self.store.update({"gradients": self.gradients, "seconds": self.seconds})

    def take_over(self) -> None:
        """Keeps writers of a stopped call out, before this one writes; a complete run is left."""
        self.is_new = True
        if self.spec.writer is not None:
            self.store.take_over(self.spec.writer)

    # What is there

    def missing(self, name: str, count: int) -> list[int]:
        """Positions along the first axis of an array, of so many, that have no sound chunk."""
        done = {chunk[0] for chunk in self.store.sound(name)}
        return [i for i in range(count) if i not in done]

    def complete(self, name: str, axis: int) -> set[int]:
        """Positions along an axis of an array at which every chunk is sound."""
        expected = self.store.expected(name)
        lacking: set[Chunk] = expected - self.store.sound(name)
        return {chunk[axis] for chunk in expected} - {chunk[axis] for chunk in lacking}
