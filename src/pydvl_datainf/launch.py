"""From what a caller asks to a plan, a store and the work on it."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from math import ceil
from typing import Any

import numpy as np

from pydvl_datainf import work
from pydvl_datainf._version import __version__
from pydvl_datainf.arrays import WORK
from pydvl_datainf.attributes import EXTRAS, sealed_attributes
from pydvl_datainf.columns import columns_of, digest, group_codes, json_of
from pydvl_datainf.errors import ModelError, PlanError, SourceError, StoreError, StoreExistsError
from pydvl_datainf.executors import Executor
from pydvl_datainf.inputs import Built, Description, Inputs
from pydvl_datainf.inverse.methods import Inverse
from pydvl_datainf.job import Job
from pydvl_datainf.layout import ENDS, arrays_of, column_type, extras_in, opened
from pydvl_datainf.plan import Plan
from pydvl_datainf.planning import exact_sample_of, planned
from pydvl_datainf.samples import Samples, Survey, as_samples
from pydvl_datainf.stages import Stages
from pydvl_datainf.store import Array, Store, differences, is_shared, listed
from pydvl_datainf.training import Fresh, Parent
from pydvl_datainf.wishes import Wishes


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
        if parent:
            parent.check_apart(store)
        stored = _stored(store, executor, wishes)
        shared = executor.share(inputs)
        (model,) = executor.map(work.describe, [None], [shared], "model")
        _check_names(model)
        tests = _survey(executor, shared, "test", inputs.test)
        training = parent or Fresh(_survey(executor, shared, "train", inputs.train))
        _check_fitted(model, training.n)
        sample = exact_sample_of(wishes, model, training.n, tests.n)
        codes, labels = _groups(wishes, tests.n)
        m = tests.n if labels is None else len(labels)
        columns = columns_of(wishes.ids, wishes.metadata, {"test": m, "train": training.n}, labels)
        columns |= training.columns()
        fingerprint = training.fingerprint(model) | _asked(wishes, tests, codes, columns)
        cut = partial(planned, model, wishes, m, tests, training, executor, store)
        if wishes.overwrite and not _is_begun(stored, fingerprint, cut):
            stored, store.layouts = None, {}
        plan, writer = cut(stored), uuid.uuid4().hex
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
            writer=writer,
            rows_of=training.rows_of,
        )
        known = columns | _known(job)
        types = {name: column_type(values.dtype) for name, values in columns.items()}
        # As they were written: the same numbers may come in wider types another time.
        types |= {name: store.layouts[name].dtype for name in types if name in store.layouts}
        if stored is None:
            training.check_whole()
        _enter(store, stored, fingerprint, types, training.rows_in, job)
        _lay_out(store, job, types, known)
        training.copy_norms(store, writer)
        _perform(store, job, executor, shared, model, wishes.self_influence, sample)


# Before the work


def _groups(wishes: Wishes, m: int) -> tuple[tuple[int, ...] | None, list[Any] | None]:
    """For each test sample its group, and the labels of the groups, where there are any."""
    return (None, None) if wishes.query_groups is None else group_codes(wishes.query_groups, m)


def _asked(
    wishes: Wishes, tests: Survey, codes: tuple[int, ...] | None, columns: Mapping[str, Array]
) -> dict[str, Any]:
    """What the test data and the wishes add to the fingerprint of a run."""
    return {
        "test samples": tests.n,
        "test data": tests.fingerprint,
        "query groups": None if codes is None else digest({"codes": np.array(codes)}),
        "by_block": wishes.by_block,
        "top_k": wishes.top_k,
        "ids and metadata": digest(columns),
        "run metadata": json_of((wishes.metadata or {}).get("run", {})),
    }


def _stored(store: Store, executor: Executor, wishes: Wishes) -> dict[str, Any] | None:
    """The attributes of the run that is to go on; None where a new one is made."""
    if not (executor.shares_memory or is_shared(store)):
        raise StoreError(f"{store} is in this process's memory, which workers do not see.")
    if store.is_vacant():
        return None
    try:
        stored = opened(store)
    except StoreError:
        if wishes.overwrite:
            return None
        raise
    return None if wishes.overwrite and stored["complete"] else stored


def _is_begun(
    stored: Mapping[str, Any] | None, fingerprint: Mapping[str, Any], cut: Callable[..., Plan]
) -> bool:
    """Whether a call that replaces runs finds its own there, stopped, by the same versions."""
    if stored is None or differences(stored["fingerprint"], fingerprint):
        return False
    try:
        cut_alike: bool = stored["plan"] == cut(stored).as_attributes()
    except PlanError:
        return False
    return cut_alike and stored["versions"] == _versions()


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


def _check_names(model: Description) -> None:
    for name in (*model.members, *model.model):
        try:
            str(name).encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"The name {name!r} in the model or its block structure holds half of a surrogate "
                "pair, which cannot be stored. Rename the module or the block."
            ) from error


def _check_fitted(model: Description, n: int) -> None:
    if model.n_samples not in (None, n):
        raise SourceError(
            f"The influence model was fitted on {model.n_samples} samples, and the training data "
            f"has {n}. Pass the data that it was fitted on, or a model that is not fitted."
        )


# The store


def _enter(
    store: Store,
    stored: Mapping[str, Any] | None,
    fingerprint: Mapping[str, Any],
    columns: Mapping[str, str],
    rows_in: Any,
    job: Job,
) -> None:
    """Makes the group, or checks that the one that is there holds the same run."""
    mine = sealed_attributes(
        {
            "fingerprint": dict(fingerprint),
            "plan": job.plan.as_attributes(),
            "columns": dict(columns),
            "rows_in": rows_in,
        }
    )
    if stored is None:
        store.create(_about(job.inverse) | mine | _UNDONE | {"writer": job.writer})
        return
    parts = ("fingerprint", "plan")
    check_same(store, [line for part in parts for line in differences(stored[part], mine[part])])
    store.sweep()


def check_same(store: Store, other: Sequence[str]) -> None:
    """Refuses to go on with the run of somebody else.

    Args:
        store: of the run that is there.
        other: what differs from the one that is asked for, a line each.

    Raises:
        StoreExistsError: if anything does.
    """
    if other:
        raise StoreExistsError(
            f"{store} holds another run. What differs:{listed(other)}\nChoose another store, or "
            "replace this one with overwrite=True."
        )


_UNDONE = {"complete": False, "extras": [], "gradients": 0, "seconds": {}}


def _about(inverse: Inverse) -> dict[str, Any]:
    return {
        "title": "Influences of training samples (train) on test samples (test)",
        "method": f"{inverse.name}: {inverse.formula}",
        "sign": "positive: more weight on the training sample lowers the test sample's loss",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "zarr", "pydvl")
    return {"pydvl-datainf": __version__, **{p: version(p) for p in packages}}


def _known(job: Job) -> dict[str, Array]:
    """What is known before the work, beside ids and metadata."""
    known = {
        "block": np.array(list(job.widths), dtype=object),
        "width": np.array(list(job.widths.values())),
    }
    ends = np.array(ENDS, dtype=object)
    return known if job.top_k is None else {**known, "end": ends}


def _lay_out(
    store: Store, job: Job, columns: Mapping[str, str], known: Mapping[str, Array]
) -> None:
    """Makes the arrays that are not there or not as they should be, and writes what is known."""
    store.layouts = arrays_of(
        job.plan,
        len(job.widths),
        job.dtype,
        factors=job.precision,
        by_block=job.by_block,
        top_k=job.top_k,
        stores_rows=job.plan.rows == "zarr" and job.train is not None,
        columns=columns,
    )
    for name in [name for name in store.layouts if name not in EXTRAS]:
        store.require(name, *store.layouts[name])
    for name, values in known.items():
        if not store.is_whole(name):
            store.write(name, ..., values)


# The work


def _perform(
    store: Store,
    job: Job,
    executor: Executor,
    inputs: Any,
    model: Description,
    self_influence: bool,
    exact_sample: int,
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
    stages.run(self_influence=self_influence, exact_sample=exact_sample)
    if not before["complete"]:
        stages.take_over()
    store.delete(WORK)
    extras = extras_in(store)
    names = [name for name in store.layouts if name not in EXTRAS] + extras
    is_told = before["extras"] == extras and not store.not_as_consolidated(names)
    if stages.is_new or not is_told:
        store.finish(extras)
