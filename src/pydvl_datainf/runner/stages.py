"""The order of the work of a run: what is missing in its store is found, done and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pydvl_datainf.inverse.damping import SquaredNorms, automatic_damping, check_representable
from pydvl_datainf.results.chunks import Chunk
from pydvl_datainf.results.layout import ENDS, comparison_in, has_extra
from pydvl_datainf.results.plan import Tiling
from pydvl_datainf.results.record import APPROXIMATION, SELF_INFLUENCE
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.executors import Executor
from pydvl_datainf.runner.job import VECTORS, Job


@dataclass
class Stages:
    """The stages of one run.

    Args:
        executor: does the tasks.
        store: of the run.
        job: how the run is cut.
        shared: the job and the inputs, as the executor shares them.
        given: λ of the blocks that have one.
        seconds: how long each stage took so far; added to.
        gradients: how many were computed so far; added to.
        is_new: whether anything was missing.
    """

    executor: Executor
    store: Store
    job: Job
    shared: Sequence[Any]
    given: Mapping[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    gradients: int = 0
    is_new: bool = field(default=False, init=False)

    def run(self, *, self_influence: bool, exact_sample: int) -> None:
        """Does what is missing.

        Args:
            self_influence: whether self-influences are wanted.
            exact_sample: training samples over which the inverse is compared with the exact one.
        """
        self._sound = {name: self.store.sound(name) for name in self._names()}
        if self.job.train is not None:
            self._rows()
            self._choose_damping()
        for q in range(len(self.job.plan.groups)):
            self._factors(q)
        self._scores()
        self._norms()
        if self_influence:
            self._self_influence()
        if exact_sample:
            self._approximation_error(exact_sample)
        asked = {SELF_INFLUENCE: self_influence, APPROXIMATION: exact_sample}
        for name in [name for name, wanted in asked.items() if not wanted]:
            self._drop_unfinished(name)

    # Stages

    def _rows(self) -> None:
        """Norms where λ follows from them, and rows where they are stored."""
        plan, done = self.job.plan, self._tiles("squared_norms")
        if plan.rows == "zarr":
            done &= self._tiles("rows") & self._tiles("row_scales")
        elif self._sound["damping"] or self.given.keys() >= self.job.widths.keys():
            return  # other stages store the norms on their way
        elif plan.rows == "memory":
            done = set()  # what was in memory is gone, and needed next: the bar is to show it
        self._map("gradients", tasks.write_rows, self._missing(plan.train, done), home=self._span)

    def _choose_damping(self) -> None:
        if self._sound["damping"]:
            return
        damping, wanted = dict(self.given), [b for b in self.job.widths if b not in self.given]
        dtype = getattr(torch, self.job.dtype)
        if wanted:
            # Tile by tile: norms of a million samples and a thousand blocks take gigabytes.
            tiles = (self.store.read("squared_norms", tile).sum(0) for tile in self.job.plan.train)
            sums = np.sum(list(tiles), axis=0)
            norms = SquaredNorms(
                dict(zip(self.job.widths, sums.tolist(), strict=True)), self.job.plan.n
            )
            damping |= automatic_damping(norms, self.job.widths, wanted, dtype)
        check_representable(damping, dtype)
        self.store.write("damping", ..., np.array([damping[b] for b in self.job.widths]))

    def _factors(self, q: int) -> None:
        """The factors of a group of queries, from their vectors and the training rows."""
        done = self._tiles("factors", complete=True)
        missing = [i for i in _range(self.job.plan.groups[q]) if i not in done]
        if missing:
            self._vectors(q)
            if self.job.inverse.rows == "summed":
                self._corrections(q)
            elif self.job.inverse.rows == "together":
                self._solutions(q)
            self._map("factors", tasks.write_factors, [(q, i) for i in missing])
        for name in (tasks.CORRECTIONS, tasks.SOLUTIONS):
            self.store.delete(f"{name}/{q}")

    def _corrections(self, q: int) -> None:
        plan, queries, name = self.job.plan, self.job.plan.group(q), f"{tasks.CORRECTIONS}/{q}"
        shape = (len(plan.spans), queries.stop - queries.start, plan.n_parameters)
        chunk = (1, plan.test_tile, plan.columns)
        self.store.require(name, shape, chunk, self.job.precision, None)
        missing = self._missing(plan.spans, self._complete(name, axis=0))
        wanted = [(q, span) for span in missing]
        self._map("corrections", tasks.write_correction, wanted, home=lambda item: item[1])

    def _solutions(self, q: int) -> None:
        """One piece of work for each block: it needs the rows of all training samples together."""
        plan, queries, wanted = self.job.plan, self.job.plan.group(q), []
        for b, d in enumerate(self.job.widths.values()):
            name, shape = f"{tasks.SOLUTIONS}/{q}/{b}", (queries.stop - queries.start, d)
            self.store.require(name, shape, (plan.test_tile, d), self.job.precision, None)
            if self.store.sound(name) != self.store.expected(name):
                wanted.append((q, b))
        self._map("solutions", tasks.write_solution, wanted)

    def _vectors(self, q: int) -> None:
        plan, grouped = self.job.plan, self.job.codes is not None
        chunk = (1, plan.test_tile, plan.columns)
        parts = len(self.job.parts) if grouped else 1
        dtype = self.job.precision if grouped else self.job.dtype
        self.store.require(VECTORS, (parts, plan.m, plan.n_parameters), chunk, dtype, None)
        wanted = range(len(self.job.parts)) if grouped else _range(self.job.plan.groups[q])
        done = self._complete(VECTORS, axis=0 if grouped else 1)
        self._map("test gradients", tasks.write_vectors, [i for i in wanted if i not in done])

    def _scores(self) -> None:
        plan = self.job.plan
        means = self._tiles("mean_influence")
        if self.job.top_k is None:
            todo = self._grid() - {(c[0], c[-1]) for c in self._sound["scores"]}
            self._map_scores(todo)
        else:
            top = {c[0] for c in self._sound["top"] & self._sound["top_scores"]}
            needed = {(i, j) for i, j in self._grid() if i not in top or j not in means}
            todo = needed - self._candidates(self.job.top_k) if needed else set()
            self._map_scores(todo)
            self._map("top", tasks.write_top, self._missing(plan.test, top))
        self._map("means", tasks.write_mean, self._missing(plan.train, means))

    def _map_scores(self, todo: set[tuple[int, int]]) -> None:
        """One piece of work for each training tile and group of queries."""
        plan, calls = self.job.plan, []
        for q, group in enumerate(plan.groups):
            for j in range(len(plan.train)):
                tiles = tuple(i for i in range(group.start, group.stop) if (i, j) in todo)
                if tiles:
                    calls.append((q, j, tiles))
        self._map("scores", tasks.write_scores, calls, home=lambda item: self._span(item[1]))

    def _candidates(self, k: int) -> set[tuple[int, int]]:
        """Makes the arrays of candidates for the top; which tiles have theirs."""
        plan = self.job.plan
        shape, chunk = (plan.m, len(plan.train), len(ENDS), k), (1, len(ENDS), k)
        for name, dtype in ((tasks.CANDIDATES, "int64"), (tasks.CANDIDATE_SCORES, self.job.dtype)):
            self.store.require(name, shape, (plan.test_tile, *chunk), dtype, None)
        sums = len(plan.test), plan.n
        self.store.require(tasks.SUMS, sums, (1, plan.train_tile), "float64", None)
        there = self.store.sound(tasks.CANDIDATES) & self.store.sound(tasks.CANDIDATE_SCORES)
        return {(i, j) for i, j in self.store.sound(tasks.SUMS) if (i, j, 0, 0) in there}

    def _norms(self) -> None:
        """Norms that no other stage had to compute, because a run went on after them."""
        if self.job.train is None:
            return
        done = {c[0] for c in self.store.sound("squared_norms")}
        missing = self._missing(self.job.plan.train, done)
        self._map("norms", tasks.write_rows, missing, home=self._span)

    def _self_influence(self) -> None:
        plan, name = self.job.plan, SELF_INFLUENCE
        self.store.require(name, *self.store.layouts[name])
        done = {c[0] for c in self.store.sound(name)}
        if self.job.inverse.rows == "together":
            if self._missing(plan.train, done):
                self._self_parts()
            return
        groups = enumerate(plan.self_groups)
        wanted = [g for g, tiles in groups if not done.issuperset(_range(tiles))]
        self._map("self-influences", tasks.write_self_influence, wanted)

    def _self_parts(self) -> None:
        name, shape = tasks.SELF_PARTS, (len(self.job.widths), self.job.plan.n)
        self.store.require(name, shape, (1, shape[1]), self.job.precision, None)
        done = {c[0] for c in self.store.sound(name)}
        wanted = [b for b in range(shape[0]) if b not in done]
        self._map("self-influences", tasks.write_self_part, wanted)
        self._map("self-influences", tasks.write_self_sum, [None])

    def _approximation_error(self, samples: int) -> None:
        name = APPROXIMATION
        said = comparison_in(self.store) if has_extra(self.store, name) else None
        if said is None or said["asked"] != samples:
            self.take_over()
            self.store.delete(name)  # never old numbers beside a new size
        self.store.require(name, *self.store.layouts[name])
        if not self.store.sound(name):
            self._map("approximation error", tasks.write_approximation_error, [samples])

    # Small print

    def _drop_unfinished(self, name: str) -> None:
        """Deletes what a call that was stopped had begun, and this one does not ask for."""
        if name in self.store.names() and not has_extra(self.store, name):
            self.take_over()
            self.store.delete(name)

    def take_over(self) -> None:
        """Keeps writers of a stopped call out, before this one writes; a complete run is left."""
        self.is_new = True
        if self.job.writer is not None:
            self.store.take_over(self.job.writer)

    def _names(self) -> list[str]:
        names = ["squared_norms", "damping", "factors", "mean_influence"]
        names += ["rows", "row_scales"] if self.job.plan.rows == "zarr" else []
        return names + (["scores"] if self.job.top_k is None else ["top", "top_scores"])

    def _grid(self) -> set[tuple[int, int]]:
        plan = self.job.plan
        return {(i, j) for i in range(len(plan.test)) for j in range(len(plan.train))}

    def _tiles(self, name: str, *, complete: bool = False) -> set[int]:
        """Tiles along the first axis whose chunks are sound."""
        if complete:
            return _along(self._sound[name], self.store.expected(name), axis=0)
        return {chunk[0] for chunk in self._sound[name]}

    def _complete(self, name: str, axis: int) -> set[int]:
        """Positions along an axis of an array at which every chunk is sound."""
        return _along(self.store.sound(name), self.store.expected(name), axis)

    def _missing(self, tiles: Tiling, done: set[int]) -> list[int]:
        return [i for i in range(len(tiles)) if i not in done]

    def _span(self, tile: int) -> int:
        return tile // self.job.plan.span_tiles

    def _map(
        self,
        what: str,
        function: Callable[..., int],
        items: Sequence[Any],
        home: Callable[[Any], int] | None = None,
    ) -> None:
        if not items:
            return
        self.take_over()
        home = home if self.job.plan.rows == "memory" else None
        start = perf_counter()
        try:
            for gradients in self.executor.map(function, items, self.shared, what, home):
                self.gradients += gradients
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + perf_counter() - start
            self.store.update({"gradients": self.gradients, "seconds": self.seconds})


def _along(sound: set[Chunk], expected: set[Chunk], axis: int) -> set[int]:
    """The positions along an axis at which every expected chunk is sound."""
    return {chunk[axis] for chunk in expected} - {chunk[axis] for chunk in expected - sound}


def _range(tiles: slice) -> range:
    return range(tiles.start, tiles.stop)
