"""Makes a run: from what a caller asks to a plan, a store and the work on it."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from distributed import Client

from pydvl_datainf.errors import PlanError, StoreError
from pydvl_datainf.huggingface.shown import with_shown
from pydvl_datainf.inverse.compression import Rank
from pydvl_datainf.inverse.methods import method_of
from pydvl_datainf.results.arrays import WORK, Array
from pydvl_datainf.results.layout import column_type, extras_in, has_extra
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import EXTRAS, NORMALIZE, SELF_INFLUENCE, compression_said
from pydvl_datainf.results.row_sets import rows_each
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner import tasks
from pydvl_datainf.runner.batched_data import BatchIndex, as_batched
from pydvl_datainf.runner.entry import (
    check_fitted,
    check_names,
    enter,
    enter_again,
    index_side,
    is_begun,
    lay_out,
    stored_in,
)
from pydvl_datainf.runner.executors import Executor, executor_for
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.request import Request
from pydvl_datainf.runner.stages import Stages
from pydvl_datainf.runner.task_calls import TaskCalls
from pydvl_datainf.runner.tasks import RunSpec
from pydvl_datainf.runner.train_side import NewRows, StoredRows
from pydvl_datainf.runner.worker_inputs import Built, Inputs


def run_influences(
    influence: Built,
    test: Any,
    train: Any | InfluenceRun,
    store: Any,
    *,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    tile: tuple[int | None, int | None] | None = None,
    memory: int | str = "2GiB",
    rows: Literal["memory", "zarr", "recompute", "compressed", "auto"] = "auto",
    top_k: int | None = None,
    by_block: bool = False,
    query_groups: Sequence[Any] | None = None,
    ids: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    self_influence: bool = False,
    exact_sample: int | Literal["auto"] = 0,
    overwrite: bool = False,
    progress: bool = True,
    rank: Rank | None = None,
    basis_sample: int | None = None,
    basis_seed: int = 0,
    sides: float | None = None,
    normalize: Literal["unit"] | None = None,
) -> InfluenceRun:
    """Computes the influence of each training sample on each test sample, into a Zarr store.

    A run that was stopped, however, goes on from what is in the store when the same call is made
    again, and ends, on CPUs, with the same bits as one that was not. Training gradients that were
    in memory alone are computed again.

    Args:
        influence: a `DataInfInfluence`, or a picklable callable without arguments that builds one
            (called once in each process; for models too large to send). If it is fitted, its λ are
            used as they are: it must have been fitted on this training data, of which only the
            number of samples is checked.
        test: a map-style dataset, a DataLoader over one in fixed order, a list of batches, one
            batch, or a pair of Dask arrays (one chunk along the samples is a batch).
        train: the same of the n training samples; or a run that kept their rows, whose damping
            serves again too. Then the training data is not read, and the result refers to that
            run's store, which must stay where it is. The model must be the same.
        store: where results go: a path, a URL that fsspec knows, or a Zarr store.
        client: a Dask client, or the address of a scheduler: the work is done by its workers, each
            with one thread, which must see the store under the same path.
        n_jobs: worker processes on this machine, as in joblib; None = this process, unless a
            surrounding `joblib.parallel_config` says otherwise.
        tile: (test, train) samples in a chunk of scores; None = chosen.
        memory: what our arrays may take in each process, in bytes or as text; the model, its
            activations and the data come on top.
        rows: gradients of training samples are kept in the "memory" of this process (not on
            workers), or in the store in half precision ("zarr"), or there as coordinates in
            directions that are learned from some of them ("compressed", see `DataInfInfluence`;
            self-influences are then of these alone), or computed again ("recompute");
            "auto" takes the first that fits, but keeps no more than 2,000 gradients in memory where
            the disk has room: a stop loses them. What `rows` the influence has, and how it
            compresses them, does not count here.
        top_k: keep only the k largest and k smallest influences on each test sample.
        by_block: keep the influences of each block.
        query_groups: a label for each test sample: the mean influence on each group is computed,
            at the cost of one test sample a group.
        ids: for "test" and "train", or one of them, unique integers or strings. Loaders of
            `influence_from_trainer` bring their own; those that are given here take their place.
        metadata: for "test" and "train" columns such as labels and texts, and for "run" anything
            that JSON holds, nested at most 100 deep; each may be left out. Loaders of
            `influence_from_trainer` bring their own, as with ids.
        self_influence: compute self-influences too. Where rows are recomputed, this computes the
            rows of all samples once for every half of `memory` that they fill.
        exact_sample: over about so many training samples, and up to 32 test samples, compare the
            inverse with the exact one, for `InfluenceRun.approximation_error`. "auto" = 256, or
            fewer where `memory` is too small, or none; 0 = do not. Exact and plain
            Hessian-free influences approximate nothing, so that nothing is compared.
        overwrite: replace the run in the store, but for one that this very call had begun, with
            the same versions of the packages, when it was stopped: that goes on.
        progress: show a bar for each stage.
        rank: numbers that compressed rows keep of a block; blocks of no more parameters are kept
            whole. "auto" = of each block as few as hold 95% of the energy of the rows that its
            directions are learned from, 256 at most: see `InfluenceRun.ranks`. None = 256. A query
            has those of the run whose rows it uses.
        basis_sample: training samples that the directions are learned from; None = 2 · rank, or 512
            with "auto".
        basis_seed: another number chooses others.
        sides: as in `DataInfInfluence`, with compressed rows: the share of its outputs, and of its
            inputs, that is kept of each wide linear layer before its directions are learned.
        normalize: "unit" divides all influences of a training sample by the norm of its gradient
            over all blocks, so that they are those of a gradient of length 1; 0 where it is zero.
            The inverse is made of the gradients as they are. None = do not.

    Returns:
        The complete run.

    Raises:
        StoreError: if the store is in use, damaged beyond repair, full or read-only.
        StoreExistsError: if it holds another run or something else.
        PlanError: if nothing fits in memory, or arguments do not go together.
        SourceError: if data has no fixed order, or changes between two reads.
        ClusterError: if the workers cannot be reached, do not suit, or are lost.
        ModelError: if the model is unsupported, or a gradient is not finite; names the sample.
        DampingError: if no λ can be chosen, or scores overflow.
    """
    named = {"train": train} if query_groups is not None else {"train": train, "test": test}
    ids, metadata = with_shown(ids, metadata, named)
    options = RunOptions(
        memory=memory,
        tile=tile,
        rows=rows,
        top_k=top_k,
        by_block=by_block,
        query_groups=query_groups,
        ids=ids,
        metadata=metadata,
        self_influence=self_influence,
        exact_sample=exact_sample,
        overwrite=overwrite,
        rank=rank,
        basis_sample=basis_sample,
        basis_seed=basis_seed,
        sides=sides,
        normalize=normalize,
    )
    if isinstance(train, InfluenceRun):
        train.store.check_same_run()
        train = StoredRows(train.store, train.allow_other_places)
    place, executor = Store(store), executor_for(client, n_jobs, progress)
    try:
        _work(influence, test, train, place, options, executor)
    finally:
        executor.close()
    # The caller named the place of the rows himself.
    return InfluenceRun(place.location, allow_other_places=isinstance(train, StoredRows))


def compute_self_influence(
    run: InfluenceRun,
    *,
    client: Client | str | None = None,
    n_jobs: int | None = None,
    progress: bool = True,
) -> Array:
    """Computes self-influences from the rows that a run kept, and keeps them in its store.

    This takes up to n² D multiplications, and neither the model nor the data.

    Args:
        run: complete; of a query, the run whose rows it used is meant.
        client: as in `run_influences`.
        n_jobs: as in `run_influences`.
        progress: as in `run_influences`.

    Returns:
        The influence of each training sample on itself, (n,).

    Raises:
        StoreError: if the run is not complete, kept no rows, or cannot be written.
    """
    made = run.run_of_rows()
    made.check_complete()
    if NORMALIZE in made.attrs["fingerprint"]:
        return made.self_influence()  # says why there are none
    if SELF_INFLUENCE in made.attrs["extras"] and has_extra(made.store, SELF_INFLUENCE):
        return made.self_influence()
    if made.plan.rows != "zarr":
        return made.self_influence()  # says what to do
    store = Store(made.store.location)
    executor = executor_for(client, n_jobs, progress)
    try:
        with store.locked():
            made.store.check_same_run()
            spec = _spec_of(made)
            store.layouts = made.store.layouts
            _perform(store, spec, executor, None, (dict(made.damping), 1.0), True, 0)
    finally:
        executor.close()
    return InfluenceRun(made.store.location).self_influence()


def _spec_of(run: InfluenceRun) -> RunSpec:
    """A run with its rows, without model and data."""
    plan, whole, told = run.plan, run.widths, run.attrs["fingerprint"]
    compression = compression_said(told)
    widths = whole if compression is None else compression.widths(whole, plan.n)
    if min(widths.values()) < 1 or sum(widths.values()) != plan.n_parameters:
        raise StoreError(f"'block' and 'width' in {run.store} are not those of a run.")
    place = run.store.location
    none = BatchIndex((), ())
    return RunSpec(
        plan=plan,
        location=place,
        rows_location=place,
        widths=widths,
        dtype=told["dtype"],
        method=method_of(told),
        test=none,
        by_block=told["by_block"],
        top_k=told["top_k"],
        writer=uuid.uuid4().hex,
        layers={block: tuple(layer) for block, layer in told.get("layers", {}).items()},
        compression=compression,
        whole=whole,
        curvature=rows_each(told),
    )


def _work(
    influence: Built, test: Any, train: Any, store: Store, options: RunOptions, executor: Executor
) -> None:
    """Computes influences into a store; a run that was begun there goes on."""
    kept = train if isinstance(train, StoredRows) else None
    if kept and options.self_influence:
        raise PlanError(
            "The training samples are those of a run. compute_self_influence(run) makes their "
            "self-influences; leave out self_influence."
        )
    size = getattr(influence, "batch_size", None)
    queries = as_batched(test, size, "test")
    inputs = Inputs(influence, queries, None if kept else as_batched(train, size, "training"))
    if not executor.shares_memory:
        inputs.check_sendable()
    with store.locked():
        if kept:
            kept.check_apart(store)
        stored = stored_in(store, executor, options)
        shared = executor.share(inputs)
        (model,) = executor.map(tasks.describe, [None], [shared], "model")
        check_names(model)
        tests = index_side(executor, shared, "test", inputs.test)
        training = kept or NewRows.of(
            index_side(executor, shared, "train", inputs.train), options.compression, model
        ).resumed(model, stored)
        check_fitted(model, training.n)
        request = Request.of(model, options, tests, training, store, executor)
        sample = request.exact_sample
        if options.overwrite and not is_begun(stored, request.fingerprint, request.plan):
            stored, store.layouts, request = None, {}, request.opened()
        spec = _begun(request, stored, shared)
        given = (model.fixed_damping, model.damping_scale)
        _perform(store, spec, executor, shared, given, options.self_influence, sample)


def _begun(request: Request, stored: Mapping[str, Any] | None, shared: Any) -> RunSpec:
    """Enters the store and lays arrays out; chooses ranks on the way, where that was asked for."""
    store, training, columns = request.store, request.training, request.columns
    types = {name: column_type(values.dtype) for name, values in columns.items()}
    # As they were written: the same numbers may come in wider types another time.
    types |= {name: store.layouts[name].dtype for name in types if name in store.layouts}
    spec = request.spec(stored)
    if stored is None:
        training.check_whole()
    enter(store, stored, request.fingerprint, types, training.rows_in, spec)
    lay_out(store, spec, types, columns)
    training.copy_norms(store, str(spec.writer))
    if not spec.is_open:
        return spec
    calls = TaskCalls.of(store, spec, request.executor, shared)
    known = request.with_ranks(Stages(calls).ranks())
    spec = known.spec(stored)
    enter_again(store, known.fingerprint, spec)
    lay_out(store, spec, types, columns)
    return spec


def _perform(
    store: Store,
    spec: RunSpec,
    executor: Executor,
    inputs: Any,
    given: tuple[Mapping[str, float], float],
    self_influence: bool,
    exact_sample: int,
) -> None:
    """Does what is missing, and marks the run as complete."""
    before, calls = store.attributes, TaskCalls.of(store, spec, executor, inputs)
    Stages(calls, *given, self_influence).run(exact_sample)
    if not before["complete"]:
        calls.take_over()
    store.delete(WORK)
    extras = extras_in(store)
    names = [name for name in store.layouts if name not in EXTRAS] + extras
    is_told = before["extras"] == extras and not store.not_as_consolidated(names)
    if calls.is_new or not is_told:
        store.finish(extras)
