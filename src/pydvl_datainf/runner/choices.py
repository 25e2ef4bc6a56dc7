"""Where rows are kept, and how many samples are compared: what is asked, against what fits."""

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from pydvl_datainf.errors import PlanError
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.batched_data import BatchIndex
from pydvl_datainf.runner.cutting import fits_at_once, make_plan
from pydvl_datainf.runner.executors import Executor
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.sizing import RunSize, moment_bytes, sample_bytes
from pydvl_datainf.runner.train_side import NewRows, StoredRows
from pydvl_datainf.runner.worker_inputs import Description

AUTO_SAMPLES = (256, 128, 64)
"""Numbers of samples that tell how approximate an inverse is: the first that fits is taken."""

MOST_IN_MEMORY = 2_000
"""Training gradients that rows="auto" keeps in memory at most: a stop loses what is there. A count
of them and not their time, so that the same call makes the same plan on every machine."""


def planned(
    model: Description,
    options: RunOptions,
    m: int,
    tests: BatchIndex,
    training: NewRows | StoredRows,
    executor: Executor,
    store: Store,
    stored: Mapping[str, Any] | None = None,
) -> Plan:
    """Cuts a run.

    Args:
        model: what is known of it.
        options: what is asked.
        m: queries.
        tests: what a first look at the test data found; its lengths suffice.
        training: the training data; its lengths suffice.
        executor: does the work.
        store: where to.
        stored: the attributes of the run that is to go on.

    Returns:
        The plan.

    Raises:
        PlanError: if nothing fits, or rows are compressed and the inverse is made of others.
    """
    asked, compression = _size_of(model, options, m, tests, training), training.compression
    tile, rows, pieces = options.tile or (None, None), options.rows, None
    if isinstance(training, StoredRows):
        tile, rows = (tile[0], training.plan.train_tile), "zarr"
        pieces = training.plan.pieces
    elif rows == "auto" and stored:
        rows = stored["plan"]["rows"]
    elif rows == "auto":
        rows = _rows_that_fit(asked, options.bytes, executor, store)
    _check_rows(rows, executor)
    model.method.check_rows("compressed" if compression else rows)
    if compression and model.curvature:
        raise PlanError(
            "The bases of compressed rows are learned from the gradients, and this curvature takes "
            'other rows. Use rows="zarr", or curvature="empirical".'
        )
    _check_same_compression(options, training)
    rows = "zarr" if compression else rows
    plan = make_plan(
        asked,
        memory=options.bytes,
        rows=rows,
        batch_size=model.batch_size,
        tile=tile,
        pieces=pieces,
    )
    return plan.narrowed(list(row_widths(model, training).values()))


def _size_of(
    model: Description,
    options: RunOptions,
    m: int,
    tests: BatchIndex,
    training: NewRows | StoredRows,
) -> RunSize:
    """The size of what is asked, or the most that it may be where ranks are to be chosen."""
    most = training.opened()
    compression = most.compression
    shapes = {} if compression is None else compression.shapes(model.widths, training.n)
    sample = 0 if compression is None else len(compression.kept_whole(training.n))
    small = {} if compression is None else compression.small_widths(model.widths)
    sides = {} if compression is None else compression.side_shapes(model.widths)
    is_new = not isinstance(training, StoredRows)
    layers = compression.layers.values() if compression and is_new else ()
    return RunSize(
        n=training.n,
        m=m,
        m_samples=tests.n,
        widths=tuple(row_widths(model, most).values()),
        itemsize=np.dtype(model.dtype).itemsize,
        longest=max(training.longest, *tests.lengths),
        method=model.method,
        by_block=options.by_block,
        top_k=options.top_k,
        precision=np.dtype(model.method.precision(model.dtype)).itemsize,
        moments=moment_bytes(model.layers.values()),
        whole=tuple(model.widths.values()),
        bases=tuple(shapes.values()),
        basis_sample=sample if is_new else 0,
        small=tuple(small.values()),
        sides=sum(o * a + i * k for o, a, i, k in sides.values()),
        side_moments=moment_bytes(layers),
        curvature=model.curvature.get("rows", 0),
    )


def row_widths(model: Description, training: NewRows | StoredRows) -> Mapping[str, int]:
    """Numbers of each block in a row: d_l, or of coordinates."""
    compression = training.compression
    return model.widths if compression is None else compression.widths(model.widths, training.n)


def _check_same_compression(options: RunOptions, training: NewRows | StoredRows) -> None:
    if options.rows != "compressed" or isinstance(training, NewRows):
        return
    there, asked, n = training.compression, options.compression, training.n
    told = [
        compression and (compression.rank, compression.positions(n).tolist(), compression.sides)
        for compression in (there, asked)
    ]
    if told[0] != told[1]:
        known, wanted = (compression.asked if compression else {} for compression in (there, asked))
        differ = [f"{name}={known[name]!r}" for name in known if known[name] != wanted.get(name)]
        kept = f"with {', '.join(differ)}" if differ else "whole"
        raise PlanError(
            f"{training.store} keeps its training rows {kept}, otherwise than rows='compressed' "
            "asks here, and a query uses them as they are. Leave out rows."
        )


def exact_sample_of(options: RunOptions, model: Description, n: int, m: int) -> int:
    """Over how many training samples the inverse is compared with the exact one.

    Args:
        options: what is asked.
        model: what is known of it; its widths are those of the rows, see `row_widths`.
        n: training samples.
        m: test samples.

    Returns:
        Their number; 0 where nothing is approximated, or, with "auto", nothing of use fits.

    Raises:
        PlanError: if a number that is asked for does not fit.
    """
    if not model.method.is_approximate:
        return 0
    if model.curvature and options.exact_sample not in (0, "auto"):
        raise PlanError(
            "The inverse is compared with the exact one over training gradients, and here it is "
            "made of other rows. Leave out exact_sample, or compare a run with "
            'curvature="empirical".'
        )
    if model.curvature:
        return 0
    widths, itemsize = tuple(model.widths.values()), np.dtype(model.dtype).itemsize
    moments = moment_bytes(model.layers.values())
    if options.exact_sample == "auto":
        sizes = (moments + sample_bytes(widths, itemsize, min(size, n), m) for size in AUTO_SAMPLES)
        fitting = (s for s, b in zip(AUTO_SAMPLES, sizes, strict=True) if b <= options.bytes)
        return next(fitting, 0)
    needed = moments + sample_bytes(widths, itemsize, min(options.exact_sample, n), m)
    if options.exact_sample and needed > options.bytes:
        raise PlanError(
            f"Comparing {options.exact_sample:,} samples with the exact inverse takes {needed:,} "
            f"bytes, and memory is {options.bytes:,}. Use more memory, a smaller exact_sample, "
            '"auto", or exact_sample=0.'
        )
    return options.exact_sample


def _check_rows(rows: str, executor: Executor) -> None:
    if rows == "memory" and not executor.shares_memory:
        raise PlanError(
            'rows="memory" keeps them in this process, of which workers see nothing. Use '
            'rows="zarr" or "recompute".'
        )


def _rows_that_fit(asked: RunSize, memory: int, executor: Executor, store: Store) -> str:
    """In memory if they are few and all queries fit beside them, on disk if there is room."""
    fits = executor.shares_memory and fits_at_once(asked, memory)
    if fits and asked.rows <= MOST_IN_MEMORY:
        return "memory"
    if _has_room(asked, store) or not (fits or asked.method.joins):
        return "zarr"
    return "memory" if fits else "recompute"


def _has_room(asked: RunSize, store: Store) -> bool:
    """Whether half of the free space of the disk holds the rows."""
    if store.path is None:
        return False
    existing = next(folder for folder in store.path.resolve().parents if folder.exists())
    needed = 2 * asked.rows * sum(asked.widths)
    return needed <= shutil.disk_usage(existing).free // 2
