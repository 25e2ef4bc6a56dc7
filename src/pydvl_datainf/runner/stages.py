"""The order of a run's work, and what is missing on its training side: rows, norms, λ, moments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pydvl_datainf.inverse.damping import SquaredNorms, resolve_damping
from pydvl_datainf.results.arrays import WORK
from pydvl_datainf.results.chunks import Chunk
from pydvl_datainf.results.layout import (
    basis_name,
    comparison_in,
    has_extra,
    moments_name,
    sides_name,
)
from pydvl_datainf.results.record import APPROXIMATION, SELF_INFLUENCE, TRAINING_LOSS
from pydvl_datainf.results.row_sets import SCORED, RowSet
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.score_stages import ScoreStages
from pydvl_datainf.runner.task_calls import TaskCalls
from pydvl_datainf.runner.tasks import RunSpec

TILES_AT_ONCE = 4
"""Training tiles in one task, so that all but the last are written while the next is computed."""


@dataclass
class Stages:
    """The stages of one run.

    Args:
        calls: of its tasks.
        given: λ of the blocks that have one.
        damping_scale: what others are multiplied by.
        self_influence: whether self-influences are wanted.
    """

    calls: TaskCalls
    given: Mapping[str, float] = field(default_factory=dict)
    damping_scale: float = 1.0
    self_influence: bool = False
    _sound: dict[str, set[Chunk]] = field(default_factory=dict, init=False)
    _has_sample: bool = field(default=False, init=False)

    @property
    def store(self) -> Store:
        """Of the run."""
        return self.calls.store

    @property
    def spec(self) -> RunSpec:
        """What the run is."""
        return self.calls.spec

    def run(self, exact_sample: int) -> None:
        """Does what is missing.

        Args:
            exact_sample: training samples over which the inverse is compared with the exact one.
        """
        if self.spec.train is not None:
            self._sound = {name: self.store.sound(name) for name in self._names()}
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
        scores = ScoreStages(self.calls, self.self_influence)
        if self.calls.has_inputs:
            if self.spec.normalizes:
                self._norms((SCORED,))
            scores.scores()
        self._norms(self.spec.row_sets)
        self._training_losses()
        if self.self_influence:
            scores.self_influences()
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
        self.calls.map("ranks", tasks.write_rank, self.calls.missing(tasks.RANKS, blocks))
        return tuple(self.store.read(tasks.RANKS).tolist())

    # The training data

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
        lost = any(not self._sound[name] for name in self._basis_names())
        if lost and any(self._sound[name] for name in self._row_names(rows)):
            self._forget_rows(rows)
            done = set()
        missing = [j for j in range(len(plan.train)) if j not in done]
        if self.spec.compression and (missing or lost):
            self._bases()
        each = TILES_AT_ONCE if plan.rows == "zarr" else 1
        items = [(rows, tuple(missing[at : at + each])) for at in range(0, len(missing), each)]
        self.calls.map("gradients", tasks.write_rows, items)

    def _forget_rows(self, rows: RowSet) -> None:
        """Deletes coordinates in bases of which one was lost.

        It may be another where it is learned again, by another machine or number of threads.
        """
        self.calls.take_over()
        self.store.delete(WORK)
        for name in [*self._row_names(rows), "energy", "compression_error"]:
            self.store.delete(name)
            self.store.require(name, *self.store.layouts[name])
            self._sound[name] = set()

    def _sample(self) -> None:
        """Rows that are kept until they are projected."""
        if self._has_sample:  # looking at all of them again takes longer than a second
            return
        parts, widths = tasks.sample_parts(self.spec), self.spec.sampled_widths
        done = set(range(len(parts)))
        for b, width in enumerate([*widths.values(), 1]):  # the last is that of losses
            name, shape = tasks.sample_name(b), (parts.total, width)
            self.store.require(name, shape, (parts.size, width), self.spec.dtype, None)
            done &= self.calls.complete(name, axis=0)
        self.calls.map(
            "sample", tasks.write_sample, [p for p in range(len(parts)) if p not in done]
        )
        self._has_sample = True

    def _bases(self) -> None:
        """Bases of compressed rows, and the rows that they are learned from."""
        self._sides()
        self._sample()
        missing = [b for b in self.spec.basis_shapes if not self._sound[basis_name(b)]]
        self.calls.map("bases", tasks.write_basis, missing)

    def _sides(self) -> None:
        """Side bases, from moments over parts of the sample."""
        shapes = self.spec.side_shapes
        missing = [b for b in shapes if not self._sound[sides_name(b)]]
        if not missing:
            return
        self._forget_behind(missing)
        assert self.spec.compression is not None  # what is missing is of its sides
        parts = tasks.side_parts(self.spec.compression.sample_size(self.spec.plan.n))
        done = set(range(len(parts)))
        for b, (o, _, i, _) in shapes.items():
            name, entries = tasks.side_sums_name(b), o * o + i * i
            self.store.require(name, (len(parts), entries), (1, entries), "float64", None)
            done &= self.calls.complete(name, axis=0)
        todo = [part for part in range(len(parts)) if part not in done]
        self.calls.map("moments of sides", tasks.write_side_moments, todo)
        self.calls.map("side bases", tasks.write_sides, missing)

    def _forget_behind(self, blocks: Sequence[int]) -> None:
        """Deletes what is behind side bases that were lost, which may be others next time."""
        self.calls.take_over()
        self.store.delete(tasks.SAMPLE)
        self._has_sample = False
        for b in set(blocks) & self.spec.basis_shapes.keys():
            name = basis_name(b)
            if self._sound[name]:
                self.store.delete(name)
                self.store.require(name, *self.store.layouts[name])
                self._sound[name] = set()

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
        self.calls.take_over()
        self.store.write("energy", ..., shares)

    def _compression_error(self) -> None:
        """What compression changes, while there are whole rows; they go then."""
        if self.spec.compression is None:
            return
        if not self._sound["compression_error"]:
            self._sample()
            self.calls.map("compression error", tasks.write_compression_error, [None])
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
            done &= self.calls.complete(sums, axis=0)
        todo = [span for span in range(len(spans)) if span not in done]
        self.calls.map("moments of layers", tasks.write_moments, todo)
        self.calls.map("moments of layers", tasks.write_moment_sums, missing)

    def _norms(self, sets: Sequence[RowSet]) -> None:
        """Norms that no other stage had to compute, or not yet."""
        if self.spec.train is None:
            return
        for rows in sets:
            missing = self.calls.missing(rows.norms, len(self.spec.plan.train))
            self.calls.map("norms", tasks.write_rows, [(rows, (j,)) for j in missing])

    def _training_losses(self) -> None:
        """Those that did not come with gradients, in forward passes: no gradient is taken again."""
        if self.spec.train is None:
            return
        missing = self.calls.missing(TRAINING_LOSS, len(self.spec.plan.train))
        self.calls.map("training losses", tasks.write_losses, missing)

    def _approximation_error(self, samples: int) -> None:
        name = APPROXIMATION
        said = comparison_in(self.store) if has_extra(self.store, name) else None
        if said is None or said["asked"] != samples:
            self.calls.take_over()
            self.store.delete(name)  # never old numbers beside a new size
        self.store.require(name, *self.store.layouts[name])
        if not self.store.sound(name):
            self.calls.map("approximation error", tasks.write_approximation_error, [samples])

    # The end, and what is there

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
            self.calls.take_over()
            self.store.delete(name)

    def _names(self) -> list[str]:
        names = ["damping", *self._moment_names().values()]
        for rows in self.spec.row_sets:
            names += [rows.norms]
            names += self._row_names(rows) if self.spec.plan.rows == "zarr" else []
        if self.spec.compression is not None:
            names += ["energy", "compression_error", *self._basis_names()]
        return names

    def _basis_names(self) -> list[str]:
        """The arrays of bases of both kinds."""
        sides, bases = self.spec.side_shapes, self.spec.basis_shapes
        return [*map(sides_name, sides), *map(basis_name, bases)]

    def _moment_names(self) -> dict[int, str]:
        """For each block that is a layer, by its number, the array of its moments."""
        blocks = enumerate(self.spec.widths)
        return {b: moments_name(b) for b, block in blocks if block in self.spec.layers}

    def _row_names(self, rows: RowSet) -> list[str]:
        own = ["outside_norms"] if self.spec.compression is not None else []
        return [rows.scales, *own, *map(rows.name, range(len(self.spec.plan.pieces)))]

    def _tiles(self, name: str) -> set[int]:
        """Tiles along the first axis whose chunks are sound, where a tile is one chunk."""
        return {chunk[0] for chunk in self._sound[name]}
