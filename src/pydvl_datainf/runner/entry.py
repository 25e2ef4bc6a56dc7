"""Before the work: a store that holds another run is refused, and arrays are laid out."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from math import ceil
from typing import Any

import numpy as np

from pydvl_datainf._version import __version__
from pydvl_datainf.errors import ModelError, PlanError, SourceError, StoreError, StoreExistsError
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.differing import differences, listed
from pydvl_datainf.results.layout import ENDS, arrays_of, moments_of, opened
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.record import EXTRAS, TEST_OBJECTIVE, is_sum, sealed_attributes
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.batched_data import BatchedData, BatchIndex
from pydvl_datainf.runner.executors import Executor
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.tasks import RunSpec
from pydvl_datainf.runner.worker_inputs import Description


def stored_in(store: Store, executor: Executor, options: RunOptions) -> dict[str, Any] | None:
    """The attributes of the run that is to go on; None where a new one is made.

    Args:
        store: where to.
        executor: does the work.
        options: what is asked.

    Returns:
        Attributes, or None.

    Raises:
        StoreError: if workers do not see the store, or it is damaged.
    """
    if not (executor.shares_memory or store.is_shared):
        raise StoreError(f"{store} is in this process's memory, which workers do not see.")
    if store.is_vacant():
        return None
    try:
        stored = opened(store)
    except StoreError:
        if options.overwrite:
            return None
        raise
    if not options.overwrite and is_sum(stored):
        check_same(store, ["it is a sum of runs"])
    return None if options.overwrite and stored["complete"] else stored


def is_begun(
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


def index_side(
    executor: Executor, shared: Any, side: str, samples: BatchedData | None
) -> BatchIndex:
    """Reads all batches once: errors come early, and it is known what was computed with."""
    count = 0 if samples is None else len(samples)
    size = max(1, ceil(count / 64))
    items = [(side, start, min(start + size, count)) for start in range(0, count, size)]
    parts = dict(executor.map(tasks.survey, items, [shared], f"reading {side} data"))
    found = [batch for start in sorted(parts) for batch in parts[start]]
    if not found:
        name = "training" if side == "train" else side
        raise SourceError(f"The {name} data is empty.")
    lengths, digests = zip(*found, strict=True)
    return BatchIndex(lengths, digests)


def check_names(model: Description) -> None:
    """Refuses names of modules that no file can hold, and of blocks the one that losses have."""
    if LOSS in model.members:
        raise ModelError(f"A run keeps losses under '{LOSS}'. Give the block another name.")
    for name in (*model.members, *model.model):
        try:
            str(name).encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"The name {name!r} in the model or its block structure holds half of a surrogate "
                "pair, which cannot be stored. Rename the module or the block."
            ) from error


def check_fitted(model: Description, n: int) -> None:
    """Refuses an influence model that was fitted on another number of samples."""
    if model.n_samples not in (None, n):
        raise SourceError(
            f"The influence model was fitted on {model.n_samples} samples, and the training data "
            f"has {n}. Pass the data that it was fitted on, or a model that is not fitted."
        )


# The store


def enter(
    store: Store,
    stored: Mapping[str, Any] | None,
    fingerprint: Mapping[str, Any],
    columns: Mapping[str, str],
    rows_in: Any,
    spec: RunSpec,
) -> None:
    """Makes the group, or checks that the one that is there holds the same run."""
    mine = sealed_attributes(
        {
            "fingerprint": dict(fingerprint),
            "plan": spec.plan.as_attributes(),
            "columns": dict(columns),
            "rows_in": rows_in,
        }
    )
    if stored is None:
        what = f"{spec.method.name}: {spec.method.formula}"
        store.create(about(what, fingerprint) | mine | UNDONE | {"writer": spec.writer})
        return
    parts = ("fingerprint", "plan")
    check_same(store, [line for part in parts for line in differences(stored[part], mine[part])])
    store.sweep()


def enter_again(store: Store, fingerprint: Mapping[str, Any], spec: RunSpec) -> None:
    """Tells the group what was chosen meanwhile.

    Args:
        store: of the run.
        fingerprint: with it.
        spec: with it.
    """
    mine = {"fingerprint": dict(fingerprint), "plan": spec.plan.as_attributes()}
    told = sealed_attributes(store.attributes | mine)
    store.take_over(str(spec.writer))
    store.update({name: told[name] for name in (*mine, "checksum")})
    store.checksum = told["checksum"]


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


UNDONE = {"complete": False, "extras": [], "gradients": 0, "seconds": {}}


def about(method: str, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What a store tells people of its run.

    Args:
        method: what was computed, in a line.
        fingerprint: of the run.

    Returns:
        Attributes.
    """
    asked = "objective of its own" if TEST_OBJECTIVE in fingerprint else "loss"
    return {
        "title": "Influences of training samples (train) on test samples (test)",
        "method": method,
        "sign": f"positive: more weight on the training sample lowers the test sample's {asked}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"pydvl-datainf": __version__, **_versions_of_others()}


@cache
def _versions_of_others() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "numpy", "zarr", "pydvl")}


def _known(spec: RunSpec) -> dict[str, Array]:
    """What is known before the tasks, beside ids and metadata."""
    known = {
        "block": np.array(list(spec.widths), dtype=object),
        "width": np.array(list(spec.parameters.values())),
    }
    ends = np.array(ENDS, dtype=object)
    return known if spec.top_k is None else {**known, "end": ends}


def lay_out(
    store: Store, spec: RunSpec, types: Mapping[str, str], columns: Mapping[str, Array]
) -> None:
    """Makes the arrays that are not there or not as they should be, and writes what is known."""
    has_bases = spec.compression and spec.train is not None and not spec.is_open
    store.layouts = arrays_of(
        spec.plan,
        len(spec.widths),
        spec.dtype,
        by_block=spec.by_block,
        top_k=spec.top_k,
        stores_rows=spec.plan.rows == "zarr" and spec.train is not None and not spec.is_open,
        columns=types,
        moments=moments_of(spec.widths, spec.layers if spec.train is not None else {}),
        bases=spec.basis_shapes if has_bases else None,
        sides=spec.side_shapes if has_bases else None,
        curvature=spec.curvature if spec.train is not None else 0,
    )
    for name in [name for name in store.layouts if name not in EXTRAS]:
        store.require(name, *store.layouts[name])
    for name, values in {**columns, **_known(spec)}.items():
        if not store.is_whole(name):
            store.write(name, ..., values)
