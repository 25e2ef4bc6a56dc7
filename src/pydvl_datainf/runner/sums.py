r"""Adds runs: Σ_k w_k (scores of run k), each of which has an inverse of its own.

TracIn (Pruthi et al., NeurIPS 2020) adds checkpoints of one training, weighted by learning rate;
runs of trainings with several seeds are added alike.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from pydvl_datainf.errors import PlanError, StoreError, StoreExistsError
from pydvl_datainf.inverse.names import SETTINGS
from pydvl_datainf.results.arrays import CURVATURE, Array
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.layout import arrays_said, extras_in, opened
from pydvl_datainf.results.metadata import json_of
from pydvl_datainf.results.plan import Tiling
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import (
    COMPRESSION,
    EXTRAS,
    NO_ROWS,
    NORMALIZE,
    PRECONDITIONER,
    SELF_INFLUENCE,
    TEST_OBJECTIVE,
    sealed_attributes,
)
from pydvl_datainf.results.store import Store
from pydvl_datainf.results.stored import Stored
from pydvl_datainf.runner.entry import UNDONE, about, check_same
from pydvl_datainf.sums import checked_weights, sum_name

ALIKE = (
    "objective",
    TEST_OBJECTIVE,
    NORMALIZE,
    "training samples",
    "test samples",
    "query groups",
)
"""Parts of the fingerprint that are the same in all runs of a sum."""

OF_ONE_METHOD = (SETTINGS, "layers", CURVATURE, PRECONDITIONER, COMPRESSION)
"""Parts of the fingerprint that a sum has not: they are those of a method, or of rows."""

COPIED = ("block", "width")
"""Arrays that are those of the first run, beside ids and columns."""

DATA = ("training data", "test data")
"""Their checksums, which follow from the batches too."""


def sum_runs(
    runs: Sequence[InfluenceRun],
    store: Any,
    weights: Sequence[float] | None = None,
    *,
    check_data: bool = True,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> InfluenceRun:
    """Adds the influences of several runs into a run of its own: Σ_k w_k (influences of run k).

    Each run keeps the inverse that it was made with: runs of several checkpoints of one training,
    weighted by their learning rates, or of several trainings of one kind. A sum has the mean
    influences, influences by block where all runs keep them, and self-influences where all runs
    have them, each with the same weights; ids, groups of queries and metadata of the samples are
    those of the first run. It has neither λ nor rows: `InfluenceRun.parts` names the runs that do.

    Numbers are added in float64 in the order of the runs, and scores rounded once. One chunk is
    worked on at a time. A sum that was stopped goes on when the same call is made again, and ends
    with the same bits; self-influences that the runs have got since are added too.

    Args:
        runs: complete, over the same test and training samples, with the same blocks of parameters
            and the same objective; methods may differ.
        store: where the sum goes: a path, a URL that fsspec knows, or a Zarr store.
        weights: w_k for each run, not negative, since a positive influence would else not mean
            that a sample helps; None = 1 for each.
        check_data: refuse runs whose data have other checksums. These tell batches of other
            lengths and other tokenizers apart too; False = ids and columns tell enough.
        metadata: anything that JSON holds, told of the sum.
        overwrite: replace the run in the store, but for one that this very call had begun.
        progress: show a bar.

    Returns:
        The complete sum.

    Raises:
        PlanError: if there are no runs, they do not go together, the weights do not fit, or the
            sum overflows.
        StoreError: if a run is not complete or damaged, or the store is in use, damaged beyond
            repair, full or read-only.
        StoreExistsError: if the store holds another run or something else, or one of the runs.
    """
    given = checked_weights(weights, len(runs), "runs")
    _check_addable(runs, check_data)
    place = Store(store)
    work = _Sum(runs, given, place, _attributes(runs, given, metadata), progress)
    with place.locked():
        for run in runs:
            if place.holds(run.store):
                raise StoreExistsError(
                    f"{place} holds {run.store}, which is to be added. Choose another store for "
                    "the sum."
                )
        work.do(_stored_in(place, work.attributes, overwrite))
    return InfluenceRun(store)


# What is asked


def _check_addable(runs: Sequence[InfluenceRun], check_data: bool) -> None:
    first = runs[0]
    for run in runs:
        run.check_complete()
        if run.scores is None:
            raise PlanError(
                f"{run.store} kept the top {run.attrs['fingerprint']['top_k']} of each query, and "
                "of a sum these are not known. Make the runs without top_k."
            )
    for run in runs[1:]:
        other = _other(first, run, check_data)
        if other:
            raise PlanError(
                f"{run.store} cannot be added to {first.store}: they differ.{listed(other)}"
            )


def _other(first: InfluenceRun, run: InfluenceRun, check_data: bool) -> list[str]:
    """What differs that a sum has once, a line each."""
    mine, theirs = (_told(r, check_data) for r in (first, run))
    lines = [f"{name}: {a!r} and {theirs[name]!r}" for name, a in mine.items() if a != theirs[name]]
    # As lists, since influences by block lie in the order of the blocks.
    blocks = [list(r.attrs["fingerprint"]["blocks"].items()) for r in (first, run)]
    if blocks[0] != blocks[1] or list(first.widths.items()) != list(run.widths.items()):
        lines.append("blocks of parameters: their names, parameters or widths")
    if lines:
        return lines
    columns, others = first.attrs["columns"], run.attrs["columns"]
    for name in dict.fromkeys((*columns, *others)):
        if name not in columns or name not in others:
            lines.append(f"column '{name}': only one of them has it")
        elif not _same(first.store.read(name), run.store.read(name)):
            lines.append(f"column '{name}'" if "_" in name else f"ids of the {name} samples")
    return lines


def _told(run: InfluenceRun, check_data: bool) -> dict[str, Any]:
    names = (*ALIKE, *(DATA if check_data else ()))
    told = {name: run.attrs["fingerprint"].get(name) for name in names}
    return told | {"queries": run.plan.m}


def _same(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f"))


def _attributes(
    runs: Sequence[InfluenceRun], weights: Sequence[float], metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All that is known of a sum before it is made."""
    first, told = runs[0].attrs, [run.attrs["fingerprint"] for run in runs]
    name = sum_name(part["method"] for part in told)
    parts = zip(runs, told, weights, strict=True)
    common = {key: value for key, value in told[0].items() if key not in OF_ONE_METHOD}
    fingerprint = common | {
        "method": name,
        "dtype": str(np.result_type(*(part["dtype"] for part in told))),
        "model": {},
        "damping": {},
        "by_block": all(part["by_block"] for part in told),
        "run metadata": json_of(metadata or {}),
        "parts": [
            {"method": part["method"], "weight": weight, "run": run.attrs["checksum"]}
            for run, part, weight in parts
        ],
    }
    stages = [stage for run in runs for stage in run.attrs["seconds"].items()]
    seconds = {stage: sum(s for name, s in stages if name == stage) for stage, _ in stages}
    return sealed_attributes(
        about(f"{name}: Σ_k w_k (influences of run k), over {len(runs)} runs", fingerprint)
        | UNDONE
        | {
            "fingerprint": fingerprint,
            "plan": replace(runs[0].plan, rows=NO_ROWS).as_attributes(),
            "columns": first["columns"],
            "rows_in": None,
            "parts_in": [str(run.store) for run in runs],
            "writer": uuid.uuid4().hex,
            "gradients": sum(run.attrs["gradients"] for run in runs),
            "seconds": seconds,
        }
    )


def _stored_in(
    store: Store, attributes: Mapping[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """The attributes of the sum that is to go on; None where a new one is made."""
    if store.is_vacant():
        return None
    try:
        stored = opened(store)
    except StoreError:
        if overwrite:
            return None
        raise
    parts = ("fingerprint", "plan")
    other = [line for part in parts for line in differences(stored[part], attributes[part])]
    if overwrite:
        return None if other or stored["complete"] else stored
    check_same(store, other)
    return stored


# The work


@dataclass(frozen=True, slots=True)
class _Sum:
    """What is added, and where to.

    Args:
        runs: that are added.
        weights: of each.
        store: of the sum.
        attributes: of the sum, when it is made.
        progress: show a bar.
    """

    runs: Sequence[InfluenceRun]
    weights: Sequence[float]
    store: Store
    attributes: Mapping[str, Any]
    progress: bool

    def do(self, stored: Mapping[str, Any] | None) -> None:
        """Makes what is missing; a complete sum is left.

        Args:
            stored: the attributes of the sum that goes on; None = it is new.
        """
        start, store = perf_counter(), self.store
        names = self._wanted(stored)
        if stored is None:
            self._check_parts(names)
            store.create(self.attributes)
            opened(store)
        chunks = {name: self._missing(name) for name in names}
        if stored is not None:
            if not any(chunks.values()) and self._is_told(stored):
                return
            self._check_parts(names)
            store.take_over(self.attributes["writer"])
            store.sweep()
        self._lay_out(names)
        steps = [(name, where) for name, missing in chunks.items() for where in missing]
        for name, where in tqdm(steps, "sum", leave=False, disable=not self.progress):
            store.write(name, where, self._added(name, where))
        seconds = store.attributes["seconds"]
        spent = seconds.get("sum", 0.0) + perf_counter() - start
        store.update({"seconds": seconds | {"sum": spent}})
        store.finish(extras_in(store))

    def _wanted(self, stored: Mapping[str, Any] | None) -> list[str]:
        """The arrays that are added; what a complete sum had is made again where it is damaged."""
        had = stored is not None and SELF_INFLUENCE in stored["extras"]
        has_self = had or all(run.has_self_influence for run in self.runs)
        return ["scores", "mean_influence", *([SELF_INFLUENCE] if has_self else [])]

    def _check_parts(self, names: Sequence[str]) -> None:
        """Reads what is added through its checksums, before anything is written."""
        for run in self.runs:
            for name in (*names, *run.attrs["columns"], *COPIED):
                _store_of(run, name).check([name])

    def _is_told(self, stored: Mapping[str, Any]) -> bool:
        """Whether everything else of a complete sum is there, and other programs find it."""
        store, extras = self.store, extras_in(self.store)
        names = [name for name in store.layouts if name not in EXTRAS]
        is_told = stored["complete"] and stored["extras"] == extras
        is_there = is_told and all(map(store.is_whole, names))
        return is_there and not store.not_as_consolidated([*names, *extras])

    def _lay_out(self, names: Sequence[str]) -> None:
        """Makes arrays that are not there, and copies what is known from the first run."""
        store = self.store
        for name in dict.fromkeys([*(n for n in store.layouts if n not in EXTRAS), *names]):
            store.require(name, *store.layouts[name])
        for name in (*self.attributes["columns"], *COPIED):
            if not store.is_whole(name):
                store.write(name, ..., self.runs[0].store.read(name))
        if SELF_INFLUENCE not in names and SELF_INFLUENCE in store:
            store.delete(SELF_INFLUENCE)  # begun when all runs had theirs

    def _missing(self, name: str) -> list[tuple[slice, ...]]:
        """The places of the chunks of an array that are missing or damaged."""
        layout = arrays_said(self.attributes)[name]
        sides = [Tiling(*side) for side in zip(layout.shape, layout.chunks, strict=True)]
        sound = self.store.sound(name)
        return [
            tuple(side[i] for side, i in zip(sides, chunk, strict=True))
            for chunk in product(*map(range, map(len, sides)))
            if chunk not in sound
        ]

    def _added(self, name: str, where: tuple[slice, ...]) -> Array:
        """Σ_k w_k (what run k has there), rounded to the data type of the array."""
        total = np.zeros([side.stop - side.start for side in where])
        dtype = self.store.array(name).dtype
        with np.errstate(over="ignore"):  # told below
            for run, weight in zip(self.runs, self.weights, strict=True):
                for values in _read(run, name, where):
                    total += weight * values.astype(np.float64)
            rounded = total.astype(dtype)
        if not np.isfinite(rounded).all():
            raise PlanError(
                f"The sum of '{name}' overflows {dtype}. Pass smaller weights, such as 1/K for "
                "each of K runs."
            )
        return rounded


def _store_of(run: InfluenceRun, name: str) -> Stored:
    """Where an array of a run is: self-influences of a query are those of the run it asked."""
    return run.run_of_rows().store if name == SELF_INFLUENCE else run.store


def _read(run: InfluenceRun, name: str, where: tuple[slice, ...]) -> Iterator[Array]:
    """What a run has at a place of the sum; block after block where only the run keeps blocks."""
    told = run.attrs["fingerprint"]
    if name == "scores" and told["by_block"] and len(where) == 2:
        queries, train = where
        for b in range(len(told["blocks"])):
            yield run.store.read(name, (queries, slice(b, b + 1), train))[:, 0]
    else:
        yield _store_of(run, name).read(name, where)
