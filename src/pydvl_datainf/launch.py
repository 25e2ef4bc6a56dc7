"""From what a caller asks to a plan, a store and the work on it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil
from typing import Any

import numpy as np
from dask.utils import parse_bytes

from pydvl_datainf import work
from pydvl_datainf._version import __version__
from pydvl_datainf.columns import columns_of, digest, group_codes, json_of
from pydvl_datainf.errors import ModelError, PlanError, SourceError, StoreError, StoreExistsError
from pydvl_datainf.executors import Executor
from pydvl_datainf.inputs import Built, Description, Inputs
from pydvl_datainf.inverse.methods import Inverse
from pydvl_datainf.job import Job
from pydvl_datainf.plan import Plan, Task, check_solvable, fits_at_once, make_plan
from pydvl_datainf.samples import Samples, Survey, as_samples
from pydvl_datainf.stages import Stages
from pydvl_datainf.store import WORK, Array, Store, differences, is_shared

ROWS = ("memory", "zarr", "recompute", "auto")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller asks of a run, beside the model and the data.

    Args:
        memory: bytes that our arrays may take in one process, or text such as "2GiB".
        tile: (test, train) samples in a tile; None = chosen.
        rows: where training rows are kept.
        top_k: how many scores are kept at either end; None = all.
        by_block: whether each block has scores of its own.
        query_groups: a label for each test sample.
        ids: of the samples of both sides.
        metadata: of both sides, and under "run" of the run itself.
        self_influence: whether self-influences are computed too.
        exact_sample: training samples over which the inverse is compared with the exact one.
        overwrite: whether another run in the store is replaced.

    Raises:
        PlanError: if anything is out of range, or does not go together.
    """

    memory: int | str = "2GiB"
    tile: tuple[int | None, int | None] | None = None
    rows: str = "auto"
    top_k: int | None = None
    by_block: bool = False
    query_groups: Sequence[Any] | None = None
    ids: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    self_influence: bool = False
    exact_sample: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise PlanError(f"rows must be one of {ROWS}, got {self.rows!r}.")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise PlanError(f"top_k must be a positive number or None, got {self.top_k!r}.")
        if type(self.exact_sample) is not int or self.exact_sample < 0:
            raise PlanError(
                f"exact_sample must be a number of samples or 0, got {self.exact_sample!r}."
            )
        if self.top_k is not None and self.by_block:
            raise PlanError("top_k keeps total scores only; leave out top_k or by_block.")
        if self.tile is not None and len(self.tile) != 2:
            raise PlanError(f"tile must be (test, train) samples, got {self.tile!r}.")
        self.bytes  # noqa: B018

    @property
    def bytes(self) -> int:
        """The memory as a number."""
        try:
            number = int(parse_bytes(self.memory))
        except (ValueError, TypeError, AttributeError):
            raise PlanError(
                f'memory must be bytes or text like "2GiB", got {self.memory!r}.'
            ) from None
        if number < 1:
            raise PlanError(f"memory must be positive, got {self.memory!r}.")
        return number


@dataclass(frozen=True, slots=True)
class Fresh:
    """Training data whose gradients are computed.

    Args:
        survey: what a first look at it found.
    """

    survey: Survey
    rows_in: None = None

    @property
    def n(self) -> int:
        """The number of samples."""
        return self.survey.n

    @property
    def longest(self) -> int:
        """Samples in the longest batch."""
        return max(self.survey.lengths)

    def fingerprint(self, model: Description) -> dict[str, Any]:
        """What model and training data add to the fingerprint of a run."""
        data = {"training samples": self.n, "training data": self.survey.fingerprint}
        return model.fingerprint | data

    def columns(self) -> dict[str, Array]:
        """None but the caller's."""
        return {}

    def copy_norms(self, store: Store) -> None:
        """There are none yet."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A complete run whose training rows and damping serve another one.

    Args:
        store: of the run.

    Raises:
        StoreError: if it is not complete, or keeps no rows.
    """

    store: Store
    attributes: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", self.store.attributes)
        if not self.attributes["complete"] or self.plan.rows != "zarr":
            raise StoreError(
                f"{self.store} is not complete, or keeps no training rows. A run that is to answer "
                'further queries is made with rows="zarr".'
            )

    @property
    def n(self) -> int:
        """The number of training samples."""
        return self.plan.n

    @property
    def longest(self) -> int:
        """Samples that are worked on at once: as many as in the run, for the same bits."""
        return self.plan.step

    @property
    def plan(self) -> Plan:
        """Of the run."""
        return Plan(**self.attributes["plan"])

    @property
    def rows_in(self) -> Any:
        """Where the rows are: a run that was itself a query has none of its own."""
        return self.attributes["rows_in"] or str(self.store)

    def fingerprint(self, model: Description) -> dict[str, Any]:
        """What both runs have in common.

        Args:
            model: computes the gradients of the queries.

        Returns:
            Entries of a fingerprint.

        Raises:
            ModelError: if the model is another one.
        """
        theirs = self.attributes["fingerprint"]
        own = {key: value for key, value in model.fingerprint.items() if key != "damping"}
        other = differences({key: theirs[key] for key in own}, own)
        if other:
            raise ModelError(f"{self.store} was computed with another model:{_listed(other)}")
        return own | {key: theirs[key] for key in ("damping", "training samples", "training data")}

    def columns(self) -> dict[str, Array]:
        """Ids and metadata of the training samples."""
        names = self.store.names()
        wanted = [name for name in names if name == "train" or name.startswith("train_")]
        return {name: self.store.read(name) for name in wanted}

    def copy_norms(self, store: Store) -> None:
        """Copies damping and norms, tile by tile."""
        store.write("damping", ..., self.store.read("damping"))
        for tile in self.plan.train:
            store.write("squared_norms", tile, self.store.read("squared_norms", tile))


def launch(
    influence: Built, test: Any, train: Any, store: Store, wishes: Wishes, executor: Executor
) -> None:
    """Computes influences into a store; a run that was begun there goes on.

    Args:
        influence: the model or its builder.
        test: test data.
        train: training data, or the parent whose rows are used.
        store: where to.
        wishes: what is asked.
        executor: does the work.
    """
    parent = train if isinstance(train, Parent) else None
    size = getattr(influence, "batch_size", None)
    queries = as_samples(test, size, "test")
    inputs = Inputs(influence, queries, None if parent else as_samples(train, size, "training"))
    with store.locked():
        stored = _stored(store, executor, wishes)
        shared = executor.share(inputs)
        (model,) = executor.map(work.describe, [None], [shared], "model")
        tests = _survey(executor, shared, "test", inputs.test)
        training = parent or Fresh(_survey(executor, shared, "train", inputs.train))
        _check_fitted(model, training.n)
        codes, labels = None, None
        if wishes.query_groups is not None:
            codes, labels = group_codes(wishes.query_groups, tests.n)
        m = tests.n if labels is None else len(labels)
        columns = columns_of(wishes.ids, wishes.metadata, {"test": m, "train": training.n}, labels)
        columns |= training.columns()
        plan = planned(model, wishes, m, tests, training, executor, store, stored)
        fingerprint = training.fingerprint(model) | {
            "test samples": tests.n,
            "test data": tests.fingerprint,
            "query groups": None if codes is None else digest({"codes": np.array(codes)}),
            "by_block": wishes.by_block,
            "top_k": wishes.top_k,
            "ids and metadata": digest(columns),
            "run metadata": json_of((wishes.metadata or {}).get("run", {})),
        }
        job = Job(
            plan=plan,
            location=store.location,
            rows_location=training.rows_in or store.location,
            widths=model.widths,
            dtype=model.dtype,
            inverse=model.inverse,
            test=tests,
            train=None if isinstance(training, Parent) else training.survey,
            model=model.model,
            codes=codes,
            by_block=wishes.by_block,
            top_k=None if wishes.top_k is None else min(wishes.top_k, plan.n),
        )
        _enter(store, stored, fingerprint, plan, training.rows_in, model.inverse)
        _lay_out(store, job, columns)
        training.copy_norms(store)
        _perform(store, job, executor, shared, model, wishes)


# Before the work


def _stored(store: Store, executor: Executor, wishes: Wishes) -> dict[str, Any] | None:
    """The attributes of the run that is to go on; None where a new one is made."""
    if not (executor.shares_memory or is_shared(store)):
        raise StoreError(f"{store} is in this process's memory, which workers do not see.")
    return None if store.is_vacant() or wishes.overwrite else store.attributes


def _survey(executor: Executor, shared: Any, side: str, samples: Samples | None) -> Survey:
    """Reads all batches once: errors come early, and it is known what was computed with."""
    count = 0 if samples is None else len(samples)
    size = max(1, ceil(count / 64))
    items = [(side, start, min(start + size, count)) for start in range(0, count, size)]
    parts = dict(executor.map(work.survey, items, [shared], f"reading {side} data"))
    found = [batch for start in sorted(parts) for batch in parts[start]]
    if not found:
        name = "training" if side == "train" else side
        raise SourceError(f"The {name} data is empty.")
    lengths, digests = zip(*found, strict=True)
    return Survey(lengths, digests)


def _check_fitted(model: Description, n: int) -> None:
    if model.n_samples not in (None, n):
        raise SourceError(
            f"The influence model was fitted on {model.n_samples} samples, and the training data "
            f"has {n}. Pass the data that it was fitted on, or a model that is not fitted."
        )


def planned(
    model: Description,
    wishes: Wishes,
    m: int,
    tests: Survey,
    training: Fresh | Parent,
    executor: Executor,
    store: Store,
    stored: Mapping[str, Any] | None = None,
) -> Plan:
    """Cuts a run.

    Args:
        model: what is known of it.
        wishes: what is asked.
        m: queries.
        tests: what a first look at the test data found; its lengths suffice.
        training: the training data; its lengths suffice.
        executor: does the work.
        store: where to.
        stored: the attributes of the run that is to go on.

    Returns:
        The plan.

    Raises:
        PlanError: if nothing fits.
    """
    task = Task(
        n=training.n,
        m=m,
        m_samples=tests.n,
        widths=tuple(model.widths.values()),
        itemsize=np.dtype(model.dtype).itemsize,
        longest=max(training.longest, *tests.lengths),
        by_block=wishes.by_block,
        top_k=wishes.top_k,
    )
    tile, rows = wishes.tile or (None, None), wishes.rows
    together = model.inverse.rows == "together"
    if together:
        check_solvable(task, wishes.bytes)
    if isinstance(training, Parent):
        tile, rows = (tile[0], training.plan.train_tile), "zarr"
    elif rows == "auto" and stored:
        rows = stored["plan"]["rows"]
    elif rows == "auto":
        rows = _rows_that_fit(task, wishes.bytes, executor, store, together)
    else:
        _check_rows(rows, executor, together)
    size = model.batch_size
    return make_plan(task, memory=wishes.bytes, rows=rows, batch_size=size, tile=tile)


def _check_rows(rows: str, executor: Executor, together: bool) -> None:
    if rows == "memory" and not executor.keeps_state:
        raise PlanError(
            'rows="memory" needs processes that live as long as the run, which those of joblib do '
            'not. Use rows="zarr" or "recompute".'
        )
    if rows == "recompute" and together:
        raise PlanError(
            "The exact inverse needs the gradients of all samples together, so they cannot be "
            'computed again piece by piece. Use rows="zarr" or "memory".'
        )


def _rows_that_fit(
    task: Task, memory: int, executor: Executor, store: Store, together: bool
) -> str:
    """In memory if all queries fit beside them, on disk if half of its free space is enough."""
    alone = executor.shares_memory or not together  # other processes would compute all rows anew
    if executor.keeps_state and alone and fits_at_once(task, memory):
        return "memory"
    if together:
        return "zarr"
    if store.path is None:
        return "recompute"
    existing = next(folder for folder in store.path.resolve().parents if folder.exists())
    needed = 2 * task.n * sum(task.widths)
    return "zarr" if needed <= shutil.disk_usage(existing).free // 2 else "recompute"


# The store


def _enter(
    store: Store,
    stored: Mapping[str, Any] | None,
    fingerprint: Mapping[str, Any],
    plan: Plan,
    rows_in: Any,
    inverse: Inverse,
) -> None:
    """Makes the group, or checks that the one that is there holds the same run."""
    mine = {"fingerprint": dict(fingerprint), "plan": plan.as_attributes(), "rows_in": rows_in}
    if stored is None:
        store.create(_about(inverse) | mine | {"complete": False, "gradients": 0, "seconds": {}})
        return
    other = [
        line for part in ("fingerprint", "plan") for line in differences(stored[part], mine[part])
    ]
    if other:
        raise StoreExistsError(
            f"{store} holds another run. What differs:{_listed(other)}\nChoose another store, or "
            "replace this one with overwrite=True."
        )
    store.sweep()


def _about(inverse: Inverse) -> dict[str, Any]:
    packages = ("torch", "numpy", "zarr", "pydvl")
    return {
        "title": "Influences of training samples (train) on test samples (test)",
        "method": f"{inverse.name}: {inverse.formula}",
        "sign": "positive: more weight on the training sample lowers the test sample's loss",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"pydvl-datainf": __version__, **{p: version(p) for p in packages}},
    }


def _lay_out(store: Store, job: Job, columns: Mapping[str, Array]) -> None:
    """Makes the arrays that are not there, and writes what is known before the work."""
    plan, blocks = job.plan, list(job.widths)
    L, D, t, r = len(blocks), plan.n_parameters, plan.test_tile, plan.train_tile
    store.require("squared_norms", (plan.n, L), (r, L), "float64", ("train", "block"))
    store.require("damping", (L,), (L,), "float64", ("block",))
    store.require("factors", (plan.m, D), (t, plan.columns), job.dtype, ("test", "parameter"))
    store.require("mean_influence", (plan.n,), (r,), "float64", ("train",))
    if plan.rows == "zarr" and job.train is not None:
        store.require("row_scales", (plan.n, L), (r, L), job.dtype, ("train", "block"))
        store.require("rows", (plan.n, D), (r, D), "float16", ("train", "parameter"))
    if job.top_k is not None:
        shape, names = (plan.m, len(work.ENDS), job.top_k), ("test", "end", "rank")
        store.require("top", shape, (t, *shape[1:]), "int64", names)
        store.require("top_scores", shape, (t, *shape[1:]), job.dtype, names)
        columns = {**columns, "end": np.array(work.ENDS, dtype=object)}
    elif job.by_block:
        store.require(
            "scores", (plan.m, L, plan.n), (t, L, r), job.dtype, ("test", "block", "train")
        )
    else:
        store.require("scores", (plan.m, plan.n), (t, r), job.dtype, ("test", "train"))
    known = {"block": np.array(blocks, dtype=object), "width": np.array(list(job.widths.values()))}
    for name, values in {**columns, **known}.items():
        dtype = "string" if values.dtype.kind == "O" else values.dtype
        dimension = "block" if name in known else name.partition("_")[0]
        store.require(name, values.shape, (2**16,), dtype, (dimension,))
        if store.sound(name) != store.expected(name):
            store.write(name, ..., values)


# The work


def _perform(
    store: Store,
    job: Job,
    executor: Executor,
    inputs: Any,
    model: Description,
    wishes: Wishes,
) -> None:
    before = store.attributes
    stages = Stages(
        executor=executor,
        store=store,
        job=job,
        shared=[executor.share(job), inputs],
        given=model.fixed_damping,
        seconds=dict(before["seconds"]),
        gradients=before["gradients"],
    )
    stages.run(self_influence=wishes.self_influence, exact_sample=wishes.exact_sample)
    store.delete(WORK)
    if stages.is_new or not before["complete"]:
        store.finish()


def _listed(lines: Sequence[str]) -> str:
    return "".join(f"\n  - {line}" for line in lines)
