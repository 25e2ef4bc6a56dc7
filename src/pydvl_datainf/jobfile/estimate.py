"""What a job would take: samples, parameters, tiles, memory, disk and time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from dask.utils import format_bytes
from rich.table import Table

from pydvl_datainf.influence import BlockwiseInfluence
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.ekfac import layer_flops
from pydvl_datainf.jobfile.checkpoints import PreparedSum
from pydvl_datainf.jobfile.data import placed_in_words
from pydvl_datainf.jobfile.preparation import Prepared
from pydvl_datainf.results.facts import NO_SIDES
from pydvl_datainf.results.plan import Plan
from pydvl_datainf.results.store import Store
from pydvl_datainf.runner.batched_data import BatchIndex, as_batched
from pydvl_datainf.runner.choices import exact_sample_of, planned
from pydvl_datainf.runner.executors import executor_for
from pydvl_datainf.runner.options import RunOptions
from pydvl_datainf.runner.sizing import sampled_queries
from pydvl_datainf.runner.tasks import moment_spans, side_parts
from pydvl_datainf.runner.train_side import NewRows
from pydvl_datainf.runner.worker_inputs import Description, Inputs
from pydvl_datainf.tables import facts_table

PROBES = 4
"""Batches whose gradients are timed, after one for which nothing is prepared yet."""
PROBED = 16
"""Samples in each of them at most."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast this machine is.

    Args:
        units: tokens (without padding) or images whose gradients are computed in a second.
        flops: floating point operations in a second, in products of the shape that the inverse has.
    """

    units: float
    flops: float


def estimate_tables(job: Prepared | PreparedSum, store: Store) -> Iterator[Table]:
    """Loads the model, plans the run, times a few batches, and tells what the run would take.

    Of several checkpoints the first is loaded; gradients, time and disk are those of all.

    Args:
        job: the job's data.
        store: where the result would go; nothing is written.

    Yields:
        Tables, in the order in which to show them.
    """
    prepared, runs = (job.first, len(job.checkpoints)) if isinstance(job, PreparedSum) else (job, 1)
    influence = prepared.builder()
    inputs = Inputs(influence, as_batched(prepared.loader("test"), None, "test"), None)
    model = inputs.describe()
    plan = plan_of(prepared, model, store)
    compression, beside = _compression(prepared, model), (0, 0)
    if compression is not None:  # the inverse works on coordinates
        beside = compressed_bytes(compression, model, plan.n)
        model = replace(model, widths=compression.widths(model.widths, plan.n))
    yield facts_table("The data", _data(prepared))
    yield facts_table("The model", _model(prepared, influence))
    yield facts_table("The plan", _plan(prepared, plan, model, runs, beside))
    yield facts_table("The time, on this machine", _time(prepared, plan, model, influence, runs))


def plan_of(prepared: Prepared, model: Description, store: Store) -> Plan:
    """How the run would be cut.

    Args:
        prepared: the job's data.
        model: what is known of it.
        store: where the result would go.

    Returns:
        The plan.
    """
    tests, training = (_survey(prepared, side) for side in ("test", "train"))
    executor = executor_for(None, prepared.job.jobs, False)
    wishes = RunOptions(**prepared.settings)
    new = NewRows(training, _compression(prepared, model))
    try:
        return planned(model, wishes, tests.n, tests, new, executor, store)
    finally:
        executor.close()


def _compression(prepared: Prepared, model: Description) -> Compression | None:
    """How rows are compressed, with the layers that get side bases."""
    asked = RunOptions(**prepared.settings).compression
    return asked and asked.of_layers(model.linear)


def gradients(plan: Plan, model: Description, *, normalizes: bool = False) -> tuple[int, int]:
    """Gradients that a run computes for its scores.

    Args:
        plan: how it is cut.
        model: what is known of it.
        normalizes: whether scores are divided by norms, which are computed before them.

    Returns:
        How often those of the training samples, and how often those of the test samples.
    """
    own = model.curvature.get("rows", 0)  # of the inverse
    if plan.rows != "recompute":
        return 1 + own, 1
    norms = 0 if len(model.fixed_damping) == len(model.widths) else 1
    before = 1 if normalizes and (own or not norms) else 0
    passes = model.method.passes * len(plan.groups) + norms
    return before + len(plan.groups) + passes * max(1, own), 1


def bytes_passing(plan: Plan, model: Description) -> int:
    """What a run has on disk for a time, beside its result.

    Args:
        plan: how it is cut.
        model: what is known of it.

    Returns:
        Bytes: of the gradients of queries, and of what is added up.
    """
    moments = len(moment_spans(plan)) * stored_moments(model)
    itemsize = np.dtype(model.method.precision(model.dtype)).itemsize
    vectors = plan.m * plan.n_parameters
    queries = plan.group(0).stop
    if plan.rows == "recompute":
        sums = len(plan.spans) * queries * plan.n_parameters if model.method.passes else 0
        return itemsize * (2 * vectors + sums)
    parts = len(plan.pieces) * queries * plan.n if len(plan.pieces) > 1 else 0
    return itemsize * (vectors + parts) + moments


def compressed_bytes(compression: Compression, model: Description, n: int) -> tuple[int, int]:
    """What compressed rows take on disk beside their coordinates.

    Args:
        compression: how.
        model: what is known of it.
        n: training samples.

    Returns:
        Bytes: of bases and what rows have outside of them; and, for a time, of rows of some
        samples, whole or behind side bases, and of the moments that these follow from.
    """
    itemsize = np.dtype(model.dtype).itemsize
    bases = sum(r * d for r, d in compression.shapes(model.widths, n).values())
    bases += sum(o * a + i * k for o, a, i, k in compression.side_shapes(model.widths).values())
    small = sum(compression.small_widths(model.widths).values()) + len(compression.layers)
    passing = itemsize * len(compression.kept_whole(n)) * small
    parts = len(side_parts(compression.sample_size(n)))
    passing += parts * sum(8 * (o**2 + i**2) for o, i, _ in compression.layers.values())
    return itemsize * bases + 8 * n * len(model.widths), passing


def stored_moments(model: Description) -> int:
    """Bytes of the second moments of layers, which a run keeps for EK-FAC."""
    return sum(8 * (o**2 + i**2) for o, i, _ in model.layers.values())


def compared(plan: Plan, m: int, samples: int) -> int:
    """Gradients that are computed again to compare the inverse with the exact one.

    Args:
        plan: how the run is cut.
        m: test samples.
        samples: training samples over which they are compared; 0 = they are not.

    Returns:
        Their number.
    """
    if not samples:
        return 0
    train = sum(k for _, k in plan.sampled(samples)) if plan.rows == "recompute" else 0
    return int(train + sum(part.stop - part.start for part in sampled_queries(m)))


def operations(plan: Plan, model: Description) -> float:
    """Floating point operations of the inverse and the scores.

    Args:
        plan: how the run is cut.
        model: what is known of it.

    Returns:
        Their number, two for each multiplication and addition.
    """
    scores = 2 * plan.n * plan.m * plan.n_parameters
    groups = (plan.group(q) for q in range(len(plan.groups)))  # each is solved for by itself
    queries = [group.stop - group.start for group in groups]
    n = plan.n * max(1, model.curvature.get("rows", 0))
    return scores + sum(_solving(n, m, model) for m in queries)


def _solving(n: int, m: int, model: Description) -> float:
    """Operations of the inverse in all blocks, for m queries together."""
    flops, layers = model.method.flops, model.layers
    others = sum(flops(n, m, d) for block, d in model.widths.items() if block not in layers)
    return others + sum(layer_flops(n, m, o, i) for o, i, _ in layers.values())


def _survey(prepared: Prepared, side: str) -> BatchIndex:
    n, size = len(prepared.sides[side].samples), prepared.job.batch_size
    lengths = [min(size, n - start) for start in range(0, n, size)]
    return BatchIndex(lengths, [""] * len(lengths))


def _data(prepared: Prepared) -> dict[str, str]:
    facts = {}
    for name, side in (("Training", prepared.material.train), ("Test", prepared.material.test)):
        lengths = np.array(side.samples.lengths)
        facts[f"{name} samples"] = f"{len(lengths):,}"
        if side.left_out:
            facts[f"{name} samples left out"] = placed_in_words(side.left_out)
        if side.empty:
            facts[f"{name} samples with an empty answer"] = placed_in_words(side.empty)
        if prepared.material.unit != "tokens":
            continue
        facts[f"{name} tokens"] = (
            f"{lengths.sum():,}; longest {lengths.max():,}, median {np.median(lengths):,.0f}"
        )
        cut = int((lengths >= prepared.job.max_length).sum())
        if cut:
            facts[f"{name} samples at max_length"] = f"{cut:,}, which may have been cut"
    return facts


def _model(prepared: Prepared, influence: BlockwiseInfluence) -> dict[str, str]:
    every = list(influence.model.parameters())
    held = sum(p.numel() * p.element_size() for p in every)
    heads = prepared.material.heads
    facts = {
        "Parameters": f"{sum(p.numel() for p in every):,}, {format_bytes(held)}",
        "Take part": f"{influence.n_parameters:,}, in {len(influence.block_names):,} blocks",
        "Device": str(influence.model_device),
    }
    if heads:
        state = "are left out; parameters: adapters+heads takes them"
        if prepared.told["heads take part"]:
            state = "take part"
        facts["Heads"] = f"{', '.join(heads)} {state}"
    return facts


def _plan(
    prepared: Prepared, plan: Plan, model: Description, runs: int, beside: tuple[int, int]
) -> dict[str, str]:
    each = 1 + model.curvature.get("rows", 0)
    rows = 2 * plan.n * each * plan.n_parameters if plan.rows == "zarr" else 0
    rows += stored_moments(model) + beside[0]
    scores = 4 * plan.n * plan.m if prepared.job.top_k is None else 0
    passing = bytes_passing(plan, model) + beside[1]
    several = {"Checkpoints": f"{runs:,}, one after the other, and their sum"} if runs > 1 else {}
    size = runs * (rows + scores) + (scores if runs > 1 else 0)
    bound = ", at most: fewer are chosen" if prepared.job.rank == "auto" else ""
    if (compression := _compression(prepared, model)) and compression.sides is not None:
        count = len(compression.layers)
        bound = f", behind side bases of {count:,} blocks" if count else f", {NO_SIDES}"
    return several | {
        "Rows": {
            "memory": "kept in memory",
            "zarr": "kept on disk, in half precision",
            "recompute": "computed again for each pass",
        }[plan.rows]
        if prepared.job.rows != "compressed"
        else f"kept on disk, {plan.n_parameters:,} numbers of a sample in half precision{bound}",
        "Tiles of scores": (
            f"{len(plan.test):,} x {len(plan.train):,}, of {plan.test_tile:,} test by "
            f"{plan.train_tile:,} training samples"
        ),
        "Groups of test samples": f"{len(plan.groups):,}",
        "Memory for our arrays": f"{prepared.job.memory} in each process, beside the model",
        "Disk": f"{format_bytes(size)}, and as much as {format_bytes(passing)} for a time",
    }


def _time(
    prepared: Prepared,
    plan: Plan,
    model: Description,
    influence: BlockwiseInfluence,
    runs: int,
) -> dict[str, str]:
    rates = measured_rates(prepared, plan, influence, model.method.precision(model.dtype))
    train, test = gradients(plan, model, normalizes=prepared.job.normalize is not None)
    sides, again = _gradients_beside(prepared, plan, model)
    unit, lengths = prepared.material.unit, prepared.material.train.samples.lengths
    passes = {
        "of training samples": train * plan.n,
        "of test samples": test * plan.m,
        "of some training samples, for side bases": sides,
        "of some samples again, to measure the approximation": again,
    }
    count = train * sum(lengths) + test * sum(prepared.material.test.samples.lengths)
    count += (sides + again) * sum(lengths) // len(lengths)
    number = runs * sum(passes.values())
    each = count / rates.units, operations(plan, model) / rates.flops
    count *= runs
    seconds = tuple(runs * part for part in each)
    return {
        "Gradients": f"{number:,}, of {count:,} {unit}",
        "Which are": ", ".join(f"{runs * k:,} {of}" for of, k in passes.items() if k),
        "Measured": f"{rates.units:,.0f} {unit} a second",
        "For gradients": duration(seconds[0]),
        "For the inverse and the scores": duration(seconds[1]),
        "Together": f"about {duration(sum(seconds))} in one process, divided by workers",
    }


def _gradients_beside(prepared: Prepared, plan: Plan, model: Description) -> tuple[int, int]:
    """Gradients for side bases, and those that are computed again to measure the approximation."""
    m, sides = len(prepared.material.test.samples), 0
    again = compared(plan, m, exact_sample_of(RunOptions(**prepared.settings), model, plan.n, m))
    if compression := _compression(prepared, model):
        again += sum(part.stop - part.start for part in sampled_queries(m))  # with whole rows
        sides = compression.sample_size(plan.n) if compression.layers else 0
    return sides, again


def measured_rates(
    prepared: Prepared, plan: Plan, influence: BlockwiseInfluence, precision: str
) -> Rates:
    """Times gradients of a few training samples, short and long, and a product.

    Args:
        prepared: the job's data.
        plan: how the run would be cut.
        influence: the model.
        precision: the dtype of the product, by NumPy's name.

    Returns:
        The rates.
    """
    samples = prepared.material.train.samples
    lengths = samples.lengths
    by_length = np.argsort(lengths, kind="stable")
    size = min(PROBED, plan.step, len(samples))
    starts = np.linspace(0, len(samples) - size, PROBES).astype(int)
    parts = [by_length[start : start + size].tolist() for start in starts]
    seconds, units = 0.0, 0
    for first, part in enumerate([parts[-1], *parts]):
        batch = samples.collate([samples[i] for i in part])
        start = perf_counter()
        influence.loss_gradients_by_block(batch)
        if first:  # before that, gradients were compared with plain ones
            seconds += perf_counter() - start
            units += sum(lengths[i] for i in part)
    flops = _flops(plan, influence.model_device, getattr(torch, precision))
    return Rates(units / seconds, flops)


def _flops(plan: Plan, device: torch.device, dtype: torch.dtype) -> float:
    m, n, d = min(plan.m, 512), min(plan.n, 512), min(plan.n_parameters, 2**15)
    left, right = (torch.ones(rows, d, dtype=dtype, device=device) for rows in (m, n))
    float((left @ right.mT).sum())
    start = perf_counter()
    float((left @ right.mT).sum())  # a number, so that a device has finished
    return 2 * m * n * d / (perf_counter() - start)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Args:
        seconds: not negative.

    Returns:
        Text.

    Examples:
        >>> duration(3.2), duration(312), duration(40000)
        ('3.2 s', '5.2 min', '11.1 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
