"""What is missing of the scores of a run, their means and self-influences, and how it is made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydvl_datainf.results.chunks import Chunk
from pydvl_datainf.results.layout import ENDS, has_extra
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.record import SELF_INFLUENCE
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.task_calls import TaskCalls
from pydvl_datainf.runner.tasks import PieceWork, RunSpec

Grid = set[tuple[int, int]]
"""Tiles of scores: of queries, and of training samples."""


@dataclass
class ScoreStages:
    """The stages of one run that take its training rows and λ.

    Args:
        calls: of its tasks.
        own_too: whether self-influences are made from the same readings of the rows.
    """

    calls: TaskCalls
    own_too: bool
    _sound: dict[str, set[Chunk]] = field(default_factory=dict, init=False)

    @property
    def store(self) -> Store:
        """Of the run."""
        return self.calls.store

    @property
    def spec(self) -> RunSpec:
        """What the run is."""
        return self.calls.spec

    @property
    def plan(self) -> Plan:
        """How the run is cut."""
        return self.calls.spec.plan

    def scores(self) -> None:
        """Scores or the best of them, group by group of queries, and their means."""
        plan, top_k = self.plan, self.spec.top_k
        found = ["scores"] if top_k is None else ["top", "top_scores"]
        self._sound = {name: self.store.sound(name) for name in (*found, "mean_influence")}
        means = {chunk[0] for chunk in self._sound["mean_influence"]}
        grid = {(i, j) for i in range(len(plan.test)) for j in range(len(plan.train))}
        if top_k is None:
            todo = grid - self._scored(grid)
        else:
            top = {c[0] for c in self._sound["top"] & self._sound["top_scores"]}
            needed = {(i, j) for i, j in grid if i not in top or j not in means}
            todo = needed - self._candidates(top_k) if needed else set()
        for q in range(len(plan.groups)):
            wanted = {(i, j) for i, j in todo if i in plan.tiles_of(q)}
            if wanted:
                self._score_group(q, wanted)
        if top_k is not None:
            lacking = [i for i in range(len(plan.test)) if i not in top]
            self.calls.map("top", tasks.write_top, lacking)
        lacking = [j for j in range(len(plan.train)) if j not in means]
        self.calls.map("means", tasks.write_mean, lacking)

    def _scored(self, grid: Grid) -> Grid:
        """Tiles of scores that are there, in all blocks."""
        sound = self._sound["scores"]
        if not self.spec.by_block:
            return {(i, j) for i, j in grid if (i, j) in sound}
        blocks = range(len(self.spec.widths))
        return {(i, j) for i, j in grid if all((i, b, j) in sound for b in blocks)}

    def _candidates(self, k: int) -> Grid:
        """Makes the arrays of candidates for the top; which tiles have theirs."""
        plan, store = self.plan, self.store
        shape, chunk = (plan.m, len(plan.train), len(ENDS), k), (1, len(ENDS), k)
        for name, dtype in (
            (tasks.CANDIDATES, "int64"),
            (tasks.CANDIDATE_SCORES, self.spec.dtype),
        ):
            store.require(name, shape, (plan.test_tile, *chunk), dtype, None)
        sums = len(plan.test), plan.n
        store.require(tasks.SUMS, sums, (1, plan.train_tile), "float64", None)
        there = store.sound(tasks.CANDIDATES) & store.sound(tasks.CANDIDATE_SCORES)
        return {(i, j) for i, j in store.sound(tasks.SUMS) if (i, j, 0, 0) in there}

    def _score_group(self, q: int, todo: Grid) -> None:
        if self.plan.rows == "recompute":
            self._factors(q)
            items = [(q, *item) for item in _by_tile(todo)]
            self.calls.map("scores", tasks.write_scores, items)
            return
        pieces = [p for p in range(len(self.plan.pieces)) if self._is_lacking(p, todo)]
        if pieces:
            self._vectors(q)
        own = self._lacking_self_influence() if self.own_too else []
        self._map_pieces("scores", [PieceWork(p, q, p in own) for p in pieces])
        if self.spec.adds_parts:
            self.calls.map("sums", tasks.write_sums, _by_tile(todo))
            self.store.delete(tasks.PARTS)

    def _is_lacking(self, p: int, todo: Grid) -> bool:
        """Whether a piece of blocks has not added its part to some tiles of scores."""
        if self.spec.by_block:
            blocks = range(len(self.spec.widths))[self.spec.blocks(p)]
            chunks = {(i, b, j) for i, j in todo for b in blocks}
            return not chunks <= self._sound["scores"]
        if not self.spec.adds_parts:
            return True
        plan, name = self.plan, tasks.parts_name(p)
        chunk = plan.test_tile, plan.train_tile
        self.store.require(name, (plan.m, plan.n), chunk, self.spec.precision, None)
        return not todo <= self.store.sound(name)

    def _vectors(self, q: int) -> None:
        """The gradients of a group of queries, in all pieces of blocks."""
        plan, grouped = self.plan, self.spec.codes is not None
        wanted = range(len(self.spec.parts)) if grouped else plan.tiles_of(q)
        done = set(wanted)
        for p, (_, width) in enumerate(plan.pieces):
            name, shape = tasks.vectors_name(p), (len(wanted) if grouped else 1, plan.m, width)
            chunk = (1, plan.test_tile, plan.columns)
            self.store.require(name, shape, chunk, self.spec.vector_dtype, None)
            done &= self.calls.complete(name, axis=0 if grouped else 1)
        missing = [i for i in wanted if i not in done]
        self.calls.map("test gradients", tasks.write_vectors, missing)

    def _factors(self, q: int) -> None:
        """The inverse times the vectors of a group of queries, where rows are computed again."""
        plan, queries = self.plan, self.plan.group(q)
        name, shape = tasks.FACTORS, (plan.m, plan.n_parameters)
        chunk = plan.test_tile, plan.columns
        self.store.require(name, shape, chunk, self.spec.precision, None)
        done = self.calls.complete(name, axis=0)
        missing = [i for i in plan.tiles_of(q) if i not in done]
        sums = tasks.corrections_name(q)
        if missing:
            self._vectors(q)
            if self.spec.method.passes:
                size = len(plan.spans), queries.stop - queries.start, plan.n_parameters
                self.store.require(sums, size, (1, *chunk), self.spec.precision, None)
                there = self.calls.complete(sums, axis=0)
                spans = [(q, span) for span in range(len(plan.spans)) if span not in there]
                self.calls.map("corrections", tasks.write_correction, spans)
            self.calls.map("factors", tasks.write_factors, [(q, i) for i in missing])
        self.store.delete(sums)

    def self_influences(self) -> None:
        """What the scores' readings of the rows have not made yet."""
        plan, name = self.plan, SELF_INFLUENCE
        self.store.require(name, *self.store.layouts[name])
        missing = set(self.calls.missing(name, len(plan.train)))
        if not missing:
            return
        if plan.rows == "recompute":
            groups = enumerate(plan.self_groups)
            wanted = [g for g, t in groups if not missing.isdisjoint(range(t.start, t.stop))]
            self.calls.map("self-influences", tasks.write_self_influence, wanted)
            return
        items = [PieceWork(p, None, True) for p in self._lacking_self_influence()]
        self._map_pieces("self-influences", items)
        self.calls.map("self-influences", tasks.write_self_sum, [None])

    def _lacking_self_influence(self) -> list[int]:
        """Pieces of blocks whose part of the self-influences is missing."""
        if has_extra(self.store, SELF_INFLUENCE):
            return []
        pieces, n = len(self.plan.pieces), self.plan.n
        self.store.require(tasks.SELF_PARTS, (pieces, n), (1, n), "float64", None)
        return self.calls.missing(tasks.SELF_PARTS, pieces)

    def _map_pieces(self, what: str, items: Sequence[PieceWork]) -> None:
        if items and self.spec.method.is_iterated:
            shape = len(self.plan.groups) + 1, len(self.plan.pieces)
            self.store.require(tasks.RESIDUALS, shape, (1, 1), "float64", None)
        self.calls.map(what, tasks.write_piece, items)


def _by_tile(grid: Iterable[tuple[int, int]]) -> list[tuple[int, tuple[int, ...]]]:
    """For each training tile in a grid its tiles of queries."""
    found: dict[int, list[int]] = {}
    for i, j in sorted(grid):
        found.setdefault(j, []).append(i)
    return sorted((j, tuple(tiles)) for j, tiles in found.items())
