"""The order of the work of a run: what is missing in its store is found, done and kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pydvl_datainf.errors import StoreError
from pydvl_datainf.inverse.damping import SquaredNorms, resolve_damping
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.results.chunks import Chunk
from pydvl_datainf.results.layout import (
    ENDS,
    basis_name,
    comparison_in,
    has_extra,
    moments_name,
)
from pydvl_datainf.results.record import APPROXIMATION, SELF_INFLUENCE, TRAINING_LOSS
from pydvl_datainf.results.row_sets import SCORED, RowSet
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.executors import Executor
from pydvl_datainf.runner.tasks import PieceWork, RunSpec

TILES_AT_ONCE = 4
"""Training tiles in one task, so that all but the last are written while the next is computed."""

Grid = set[tuple[int, int]]
"""Tiles of scores: of queries, and of training samples."""


@dataclass
class Stages:
    """The stages of one run.

    Args:
        executor: does the work.
        store: of the run.
        spec: what it is.
        shared: the context and the inputs, as the executor shares them.
        given: λ of the blocks that have one.
        damping_scale: what others are multiplied by.
        self_influence: whether self-influences are wanted.
        seconds: how long each stage took so far; added to.
        gradients: how many were computed so far; added to.
        is_new: whether anything was missing.
    """

    executor: Executor
    store: Store
    spec: RunSpec
    shared: Sequence[Any]
    given: Mapping[str, float]
    damping_scale: float = 1.0
    self_influence: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    gradients: int = 0
    is_new: bool = field(default=False, init=False)

    def run(self, exact_sample: int) -> None:
        """Does what is missing.

        Args:
            exact_sample: training samples over which the inverse is compared with the exact one.
        """
        self._sound = {name: self.store.sound(name) for name in self._names()}
        if self.spec.train is not None:
            self.store.require(TRAINING_LOSS, *self.store.layouts[TRAINING_LOSS])
            self._rows()
            self._choose_damping()
            self._energy()
            self._compression_error()
            self._moments()
        elif self.spec.compression:  # vectors may be in a basis that was learned again meanwhile
            self.store.delete(tasks.VECTORS)
        # What a complete run had is made again where it is damaged, asked for or not.
        self.self_influence |= SELF_INFLUENCE in self.store.attributes["extras"]
        if self.shared[1] is not None:  # with model and data
            if self.spec.normalizes:
                self._norms((SCORED,))
            self._scores()
        self._norms(self.spec.row_sets)
        self._training_losses()
        if self.self_influence:
            self._self_influence()
        if exact_sample:
            self._approximation_error(exact_sample)
        self._tell_residual()
        asked = {SELF_INFLUENCE: self.self_influence, APPROXIMATION: exact_sample}
        for name in [name for name, wanted in asked.items() if not wanted]:
            self._drop_unfinished(name)

    def ranks(self) -> tuple[int, ...]:
        """Chooses how many numbers of each block are kept, where rows are compressed."""
        self._sample()
        blocks = len(self.spec.widths)
        self.store.require(tasks.RANKS, (blocks,), (1,), "int64", None)
        done = {chunk[0] for chunk in self.store.sound(tasks.RANKS)}
        self._map("ranks", tasks.write_rank, [b for b in range(blocks) if b not in done])
        return tuple(self.store.read(tasks.RANKS).tolist())

    # Stages

    def _rows(self) -> None:
        """Norms where λ follows from them, and rows where they are stored."""
        for rows in self.spec.row_sets:
            self._rows_of(rows)

    def _rows_of(self, rows: RowSet) -> None:
        plan, done = self.spec.plan, self._tiles(rows.norms)
        is_chosen = self._sound["damping"] or self.given.keys() >= self.spec.widths.keys()
        if plan.rows == "zarr":
            done = done.intersection(*map(self._tiles, self._row_names(rows)))
        elif is_chosen or rows != self.spec.inverse_rows:
            return  # other stages store the norms on their way
        elif plan.rows == "memory":
            done = set()  # what was in memory is gone, and needed next: the bar is to show it
        lost = any(not self._sound[basis_name(b)] for b in self.spec.basis_shapes)
        if lost and any(self._sound[name] for name in self._row_names(rows)):
            self._forget_rows(rows)
            done = set()
        missing = [j for j in range(len(plan.train)) if j not in done]
        if self.spec.compression and (missing or lost):
            self._bases()
        each = TILES_AT_ONCE if plan.rows == "zarr" else 1
        items = [(rows, tuple(missing[at : at + each])) for at in range(0, len(missing), each)]
        self._map("gradients", tasks.write_rows, items)

    def _forget_rows(self, rows: RowSet) -> None:
        """Deletes coordinates in bases of which one was lost.

        It may be another where it is learned again, by another machine or number of threads.
        """
        self.take_over()
        self.store.delete(WORK)
        for name in [*self._row_names(rows), "energy", "compression_error"]:
            self.store.delete(name)
            self.store.require(name, *self.store.layouts[name])
            self._sound[name] = set()

    def _sample(self) -> None:
        """Whole rows that are kept until they are projected."""
        parts, widths = tasks.sample_parts(self.spec), self.spec.parameters
        done = set(range(len(parts)))
        for b, width in enumerate([*widths.values(), 1]):  # the last is that of losses
            name, shape = tasks.sample_name(b), (parts.total, width)
            self.store.require(name, shape, (parts.size, width), self.spec.dtype, None)
            done &= self._complete(name, axis=0)
        self._map("sample", tasks.write_sample, [p for p in range(len(parts)) if p not in done])

    def _bases(self) -> None:
        """Bases of compressed rows, and the whole rows that they are learned from."""
        self._sample()
        missing = [b for b in self.spec.basis_shapes if not self._sound[basis_name(b)]]
        self._map("bases", tasks.write_basis, missing)

    def _energy(self) -> None:
        """The share of the rows' squared norms that lies in the bases."""
        if self.spec.compression is None or self._sound["energy"]:
            return
        sums = [
            sum(self.store.read(name, tile).sum(0) for tile in self.spec.plan.train)
            for name in ("outside_norms", "squared_norms")
        ]
        outside, whole = map(np.asarray, sums)
        shares = 1 - np.divide(outside, whole, out=np.zeros_like(whole), where=whole > 0)
        self.take_over()
        self.store.write("energy", ..., shares)

    def _compression_error(self) -> None:
        """What compression changes, while there are whole rows; they go then."""
        if self.spec.compression is None:
            return
        if not self._sound["compression_error"]:
            self._sample()
            self._map("compression error", tasks.write_compression_error, [None])
        self.store.delete(tasks.SAMPLE)

    def _choose_damping(self) -> None:
        if self._sound["damping"]:
            return
        norms, plan, widths = None, self.spec.plan, self.spec.parameters
        if not self.given.keys() >= widths.keys():
            # Tile by tile: norms of a million samples and a thousand blocks take gigabytes.
            rows = self.spec.inverse_rows
            tiles = (self.store.read(rows.norms, rows.of(tile)).sum(0) for tile in plan.train)
            sums = np.sum(list(tiles), axis=0).tolist()
            norms = SquaredNorms(dict(zip(widths, sums, strict=True)), self.spec.n_inverse)
        dtype, scale = getattr(torch, self.spec.dtype), self.damping_scale
        damping = resolve_damping(self.given, norms, widths, dtype, scale)
        self.store.write("damping", ..., np.array(list(damping.values())))

    def _moments(self) -> None:
        """Second moments of layers, where the method wants them."""
        missing = [b for b, name in self._moment_names().items() if not self._sound[name]]
        if not missing:
            return
        spans = tasks.moment_spans(self.spec.plan)
        done = set(range(len(spans)))
        for b, name in self._moment_names().items():
            (entries,), sums = self.store.layouts[name].shape, tasks.moment_sums_name(b)
            self.store.require(sums, (len(spans), entries), (1, entries), "float64", None)
            done &= self._complete(sums, axis=0)
        todo = [span for span in range(len(spans)) if span not in done]
        self._map("moments of layers", tasks.write_moments, todo)
        self._map("moments of layers", tasks.write_moment_sums, missing)

    def _scores(self) -> None:
        """Scores or the best of them, group by group of queries, and their means."""
        plan, top_k = self.spec.plan, self.spec.top_k
        means = self._tiles("mean_influence")
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
            self._map("top", tasks.write_top, [i for i in range(len(plan.test)) if i not in top])
        missing = [j for j in range(len(plan.train)) if j not in means]
        self._map("means", tasks.write_mean, missing)

    def _score_group(self, q: int, todo: Grid) -> None:
        if self.spec.plan.rows == "recompute":
            self._factors(q)
            self._map("scores", tasks.write_scores, [(q, *item) for item in _by_tile(todo)])
            return
        pieces = [p for p in range(len(self.spec.plan.pieces)) if self._is_lacking(p, todo)]
        if pieces:
            self._vectors(q)
        own = self._lacking_self_influence() if self.self_influence else []
        self._map_pieces("scores", [PieceWork(p, q, p in own) for p in pieces])
        if self.spec.adds_parts:
            self._map("sums", tasks.write_sums, _by_tile(todo))
            self.store.delete(tasks.PARTS)

    def _is_lacking(self, p: int, todo: Grid) -> bool:
        """Whether a piece of blocks has not added its part to some tiles of scores."""
        if self.spec.by_block:
            blocks = range(len(self.spec.widths))[self.spec.blocks(p)]
            chunks = {(i, b, j) for i, j in todo for b in blocks}
            return not chunks <= self._sound["scores"]
        if not self.spec.adds_parts:
            return True
        plan, name = self.spec.plan, tasks.parts_name(p)
        chunk = plan.test_tile, plan.train_tile
        self.store.require(name, (plan.m, plan.n), chunk, self.spec.precision, None)
        return not todo <= self.store.sound(name)

    def _vectors(self, q: int) -> None:
        """The gradients of a group of queries, in all pieces of blocks."""
        plan, grouped = self.spec.plan, self.spec.codes is not None
        wanted = range(len(self.spec.parts)) if grouped else plan.tiles_of(q)
        done = set(wanted)
        for p, (_, width) in enumerate(plan.pieces):
            name, shape = tasks.vectors_name(p), (len(wanted) if grouped else 1, plan.m, width)
            chunk = (1, plan.test_tile, plan.columns)
            self.store.require(name, shape, chunk, self.spec.vector_dtype, None)
            done &= self._complete(name, axis=0 if grouped else 1)
        missing = [i for i in wanted if i not in done]
        self._map("test gradients", tasks.write_vectors, missing)

    def _factors(self, q: int) -> None:
        """The inverse times the vectors of a group of queries, where rows are computed again."""
        plan, queries = self.spec.plan, self.spec.plan.group(q)
        name, shape = tasks.FACTORS, (plan.m, plan.n_parameters)
        chunk = plan.test_tile, plan.columns
        self.store.require(name, shape, chunk, self.spec.precision, None)
        done = self._complete(name, axis=0)
        missing = [i for i in plan.tiles_of(q) if i not in done]
        sums = tasks.corrections_name(q)
        if missing:
            self._vectors(q)
            if self.spec.method.passes:
                size = len(plan.spans), queries.stop - queries.start, plan.n_parameters
                self.store.require(sums, size, (1, *chunk), self.spec.precision, None)
                there = self._complete(sums, axis=0)
                spans = [(q, span) for span in range(len(plan.spans)) if span not in there]
                self._map("corrections", tasks.write_correction, spans)
            self._map("factors", tasks.write_factors, [(q, i) for i in missing])
        self.store.delete(sums)

    def _candidates(self, k: int) -> Grid:
        """Makes the arrays of candidates for the top; which tiles have theirs."""
        plan, store = self.spec.plan, self.store
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

    def _norms(self, sets: Sequence[RowSet]) -> None:
        """Norms that no other stage had to compute, or not yet."""
        if self.spec.train is None:
            return
        for rows in sets:
            done = {c[0] for c in self.store.sound(rows.norms)}
            missing = [(rows, (j,)) for j in range(len(self.spec.plan.train)) if j not in done]
            self._map("norms", tasks.write_rows, missing)

    def _training_losses(self) -> None:
        """Those that did not come with gradients, in forward passes: no gradient is taken again."""
        if self.spec.train is None:
            return
        done = {c[0] for c in self.store.sound(TRAINING_LOSS)}
        missing = [j for j in range(len(self.spec.plan.train)) if j not in done]
        self._map("training losses", tasks.write_losses, missing)

    def _self_influence(self) -> None:
        """What the scores' readings of the rows have not made yet."""
        plan, name = self.spec.plan, SELF_INFLUENCE
        self.store.require(name, *self.store.layouts[name])
        done = {c[0] for c in self.store.sound(name)}
        if done.issuperset(range(len(plan.train))):
            return
        if plan.rows == "recompute":
            groups = enumerate(plan.self_groups)
            wanted = [g for g, t in groups if not done.issuperset(range(t.start, t.stop))]
            self._map("self-influences", tasks.write_self_influence, wanted)
            return
        items = [PieceWork(p, None, True) for p in self._lacking_self_influence()]
        self._map_pieces("self-influences", items)
        self._map("self-influences", tasks.write_self_sum, [None])

    def _lacking_self_influence(self) -> list[int]:
        """Pieces of blocks whose part of the self-influences is missing."""
        if has_extra(self.store, SELF_INFLUENCE):
            return []
        pieces, n = len(self.spec.plan.pieces), self.spec.plan.n
        self.store.require(tasks.SELF_PARTS, (pieces, n), (1, n), "float64", None)
        done = {c[0] for c in self.store.sound(tasks.SELF_PARTS)}
        return [p for p in range(pieces) if p not in done]

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

    def _map_pieces(self, what: str, items: Sequence[PieceWork]) -> None:
        plan = self.spec.plan
        if items and self.spec.method.is_iterated:
            shape = len(plan.groups) + 1, len(plan.pieces)
            self.store.require(tasks.RESIDUALS, shape, (1, 1), "float64", None)
        self._map(what, tasks.write_piece, items)

    def _tell_residual(self) -> None:
        """Adds the largest residual to the attributes, and warns of one that is too large."""
        found = [self.store.read(tasks.RESIDUALS, at) for at in self.store.sound(tasks.RESIDUALS)]
        told = self.store.attributes.get("residual")
        largest = max([*map(float, found), *([] if told is None else [told])], default=None)
        if largest != told:
            self.store.update({"residual": largest})
        if largest is not None:
            self.spec.method.warn_of(largest)

    def _drop_unfinished(self, name: str) -> None:
        """Deletes what a call that was stopped had begun, and this one does not ask for."""
        if name in self.store.names() and not has_extra(self.store, name):
            self.take_over()
            self.store.delete(name)

    def take_over(self) -> None:
        """Keeps writers of a stopped call out, before this one writes; a complete run is left."""
        self.is_new = True
        if self.spec.writer is not None:
            self.store.take_over(self.spec.writer)

    def _names(self) -> list[str]:
        names = ["squared_norms", "damping", "mean_influence"]
        if self.spec.train is not None:
            names += self._moment_names().values()
            for rows in self.spec.row_sets:
                names += [rows.norms]
                names += self._row_names(rows) if self.spec.plan.rows == "zarr" else []
            if self.spec.compression is not None:
                names += ["energy", "compression_error", *map(basis_name, self.spec.basis_shapes)]
        return names + (["scores"] if self.spec.top_k is None else ["top", "top_scores"])

    def _moment_names(self) -> dict[int, str]:
        """For each block that is a layer, by its number, the array of its moments."""
        blocks = enumerate(self.spec.widths)
        return {b: moments_name(b) for b, block in blocks if block in self.spec.layers}

    def _row_names(self, rows: RowSet) -> list[str]:
        own = ["outside_norms"] if self.spec.compression is not None else []
        return [rows.scales, *own, *map(rows.name, range(len(self.spec.plan.pieces)))]

    def _scored(self, grid: Grid) -> Grid:
        """Tiles of scores that are there, in all blocks."""
        sound = self._sound["scores"]
        if not self.spec.by_block:
            return {(i, j) for i, j in grid if (i, j) in sound}
        blocks = range(len(self.spec.widths))
        return {(i, j) for i, j in grid if all((i, b, j) in sound for b in blocks)}

    def _tiles(self, name: str) -> set[int]:
        """Tiles along the first axis whose chunks are sound, where a tile is one chunk."""
        return {chunk[0] for chunk in self._sound[name]}

    def _complete(self, name: str, axis: int) -> set[int]:
        """Positions along an axis of an array at which every chunk is sound."""
        expected = self.store.expected(name)
        lacking: set[Chunk] = expected - self.store.sound(name)
        return {chunk[axis] for chunk in expected} - {chunk[axis] for chunk in lacking}

    def _map(self, what: str, task: Callable[..., None], items: Sequence[Any]) -> None:
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


def _by_tile(grid: Iterable[tuple[int, int]]) -> list[tuple[int, tuple[int, ...]]]:
    """For each training tile in a grid its tiles of queries."""
    found: dict[int, list[int]] = {}
    for i, j in sorted(grid):
        found.setdefault(j, []).append(i)
    return sorted((j, tuple(tiles)) for j, tiles in found.items())
