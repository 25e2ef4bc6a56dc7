"""What an executor is, and the one that works in this process.

An executor knows nothing of influences. Objects that all pieces of work need are shared: they go to
each process once. Processes, never threads: a model is watched while it computes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Does independent pieces of work."""

    shares_memory: bool
    """Whether the work is done in this process."""

    @property
    def at_once(self) -> int:
        """How many pieces of work are done at the same time."""
        ...

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
    at_once = 1

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
        with bar_of(items, what, len(items), self.progress) as bar:
            for item in bar:
                yield work(item, *shared)

    def close(self) -> None:
        """Nothing to forget."""


def bar_of(items: Any, what: str, total: int, progress: bool) -> Any:
    """To be closed before an error is told, which would stand on its line."""
    return tqdm(items, what, total, leave=False, disable=not progress)
