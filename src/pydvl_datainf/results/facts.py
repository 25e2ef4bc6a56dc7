"""A run in words and numbers: the same on the terminal and in reports."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from dask.utils import format_bytes

from pydvl_datainf.block_labels import block_labels
from pydvl_datainf.inverse.compression import SHARE
from pydvl_datainf.inverse.names import UNDAMPED
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import COMPRESSION, NORMALIZE, PRECONDITIONER, TEST_OBJECTIVE

NO_SIDES = "without side bases: no layer is wide enough"
RUN_JOB = "run its job again (pydvl-datainf run JOB.yaml)"


def run_facts(
    run: InfluenceRun, *, blocks: bool = False, place: Callable[[str], str] = str
) -> dict[str, dict[str, str]]:
    """What a run holds, how far it is and what it cost.

    Args:
        run: complete or not.
        blocks: whether to list the λ of the blocks.
        place: how another store is called, whose path or URL it is given.

    Returns:
        Under each title names and values, in the order in which to show them.
    """
    names, rows_in = run.array_names(), run.attrs["rows_in"]
    damping = run.damping if run.store.present("damping") else {}
    told = {name: _told(value) for name, value in run.metadata("run").items()}
    kept = _kept(run, names, None if rows_in is None else place(rows_in))
    facts = {"The run": _size(run, damping) | _trust(run) | kept | _origin(run)}
    facts |= {"What was told of it": told} if told else {}
    if run.parts:
        facts["What was added, by weight"] = dict(_parts(run, place))
    facts |= {"How far it is": _state(run), "What it cost": _cost(run)}
    if blocks:
        values = (f"{value:.3e}" for value in damping.values())
        facts["Damping λ"] = dict(zip(block_labels(list(damping)), values, strict=True))
    return facts


def brief_facts(run: InfluenceRun) -> Iterator[str]:
    """The end of a run in a few lines.

    Args:
        run: complete.

    Yields:
        Lines.
    """
    plan, size, cost = run.plan, _size(run, run.damping if not run.parts else {}), _cost(run)
    yield (
        f"Influences of {plan.n:,} training samples on {size['Test samples']} test samples by "
        f"{size['Method']}, in {size['Blocks']} blocks of {size['Parameters in them']} parameters."
    )
    yield f"Damping λ: {size['Damping λ, smallest to largest']}."
    yield from reliability(run)
    disk = f", and {cost['Size on disk']} on disk" if "Size on disk" in cost else ""
    yield f"It took {cost['Seconds together']} s, {cost['Gradients computed']} gradients{disk}."


def reliability(run: InfluenceRun) -> Iterator[str]:
    """How far the order of samples may be trusted, as far as the run itself tells.

    Args:
        run: complete.

    Yields:
        A line for each comparison that it holds.
    """
    before = _before(run)
    if run.parts:
        yield "Rank correlation with the exact inverse: each part by itself: see there."
    elif found := run.approximation_error:
        ranks = _rank(found.rank_correlation)
        yield f"Rank correlation with the exact inverse{before}: {ranks}."
    if error := run.compression_error:
        others = "those behind side bases" if run.side_widths else "whole ones"
        yield (
            f"Rank correlation of compressed rows with {others}{before}: "
            f"{error.rank_correlation:.3f}, on a sample."
        )


def _rank(correlation: float | None) -> str:
    return "not defined" if correlation is None else f"{correlation:.2f}"


def _before(run: InfluenceRun) -> str:
    """Comparisons are of influences that are not divided yet."""
    return ", before influences are divided" if NORMALIZE in run.attrs["fingerprint"] else ""


def _size(run: InfluenceRun, damping: Mapping[str, float]) -> dict[str, str]:
    told, plan, values = run.attrs["fingerprint"], run.plan, damping.values()
    groups = "" if told["query groups"] is None else f", in {plan.m:,} groups"
    return {
        "Training samples": f"{plan.n:,}",
        "Test samples": f"{told['test samples']:,}{groups}",
        "Blocks": f"{len(told['blocks']):,}",
        "Parameters in them": f"{count_parameters(run):,}",
        "Damping λ, smallest to largest": (
            "none"
            if not run.parts and told["method"] in UNDAMPED
            else "those of the parts, each with its own"
            if run.parts
            else f"{min(values):.2e} to {max(values):.2e}"
            if values
            else "not chosen yet"
        ),
        "Method": told["method"],
        **_units(told),
        **({} if run.residual is None else {"Largest residual": f"{run.residual:.2g}"}),
        "Objective": told["objective"],
        **({"Objective of test samples": told[TEST_OBJECTIVE]} if TEST_OBJECTIVE in told else {}),
    }


def _units(told: Mapping[str, Any]) -> dict[str, str]:
    """In what gradients and influences are, where it is not that of the parameters alone."""
    facts = {}
    if PRECONDITIONER in told:
        step = told[PRECONDITIONER]["step"]
        facts["Gradients in coordinates of"] = f"Adam after {step:,} steps"
    if NORMALIZE in told:
        facts["Influences divided by"] = "the norm of each training gradient"
    return facts


def _parts(run: InfluenceRun, place: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    for k, part in enumerate(run.parts, 1):
        yield f"Run {k}, x {part.weight:g}", f"{part.method}, in {place(part.place)}"


def _trust(run: InfluenceRun) -> dict[str, str]:
    if run.parts:
        return {"Compared with the exact inverse": "each part by itself: see there"}
    found = run.approximation_error
    if found is None:
        return {}
    cosines = f"{found.cosines.min():.2f} to {found.cosines.max():.2f}"
    ranks, over = _rank(found.rank_correlation), f"{found.n:,} training, {found.m:,} test samples"
    return {
        "Compared with the exact inverse": f"over {over}{_before(run)}",
        "Cosine to it, of the blocks": cosines,
        "Rank correlation of influences": ranks,
        "Difference of influences": (
            f"{found.score_error:.2g} times their size; a factor common to all counts here, and "
            "changes no order"
        ),
        "What to make of these": 'docs/trust.md, "How far to trust a score"',
    }


def query_name(run: InfluenceRun) -> str:
    """What a row of the scores belongs to."""
    return "test sample" if run.attrs["fingerprint"]["query groups"] is None else "group"


def count_parameters(run: InfluenceRun) -> int:
    """Parameters in all blocks; a compressed row has fewer numbers."""
    told = run.attrs["fingerprint"].get(COMPRESSION)
    return run.plan.n_parameters if told is None else sum(told["widths"])


def _compressed(run: InfluenceRun, names: Sequence[str]) -> dict[str, str]:
    """What compressed rows keep."""
    if "energy" not in names or not run.store.present("energy"):
        return {}
    shares = run.store.read("energy")
    told = {"Energy in these, of the blocks": f"{shares.min():.1%} to {shares.max():.1%}"}
    if run.store.present("compression_error") and (error := run.compression_error) is not None:
        others = "rows behind side bases" if run.side_widths else "whole rows"
        told[f"Influences against those of {others}, on a sample"] = (
            f"relative error {error.score_error:.2g}, rank correlation "
            f"{error.rank_correlation:.3f}{_before(run)}"
        )
    return told


def _kept(run: InfluenceRun, names: Sequence[str], rows_in: str | None) -> dict[str, str]:
    told = run.attrs["fingerprint"]
    scores, rows = "all", "no"
    if told["top_k"] is not None:
        scores = f"the {told['top_k']} most helpful and most harmful for each test sample"
    elif told["by_block"]:
        scores = "all, of each block"
    if rows_in is not None:
        rows = f"those in {rows_in}"
    elif run.plan.rows == "zarr":
        rows = "yes, in half precision"
    own = "yes" if "self_influence" in names else "no"
    if COMPRESSION in told and rows_in is None:
        rows = f"yes, of each block {_coordinates(told[COMPRESSION])}"
        own += ", of coordinates alone" if own == "yes" else ""
    return {
        "Scores kept": scores,
        "Training rows kept": rows,
        **_compressed(run, names),
        "Self-influences": own,
        "Columns of training samples": _columns_in(names, "train_"),
        "Columns of test samples": _columns_in(names, "test_"),
    }


def _coordinates(told: Mapping[str, Any]) -> str:
    """How many are kept of a row."""
    if told["rank"] != "auto":
        return f"{told['rank']:,} coordinates at most{_behind_sides(told)}"
    if "ranks" not in told:
        return f"as many coordinates as hold {SHARE:.0%} of a sample's energy: not chosen yet"
    ranks = told["ranks"]
    return (
        f"{min(ranks):,} to {max(ranks):,} coordinates (median {median(ranks):,g}), chosen to hold "
        f"{SHARE:.0%} of a sample's energy"
    )


def _behind_sides(told: Mapping[str, Any]) -> str:
    """What is kept of wide layers."""
    if told.get("sides") is None:
        return ""
    if not told["layers"]:
        return f", {NO_SIDES}"
    share = f"{told['sides']:.4g} of the outputs and inputs"
    return f", behind {share} in {len(told['layers']):,} of them"


def _columns_in(names: Sequence[str], prefix: str) -> str:
    columns = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return ", ".join(columns) or "none"


def _origin(run: InfluenceRun) -> dict[str, str]:
    versions = (f"{name} {version}" for name, version in run.attrs["versions"].items())
    return {"Created": run.attrs["created"], "Versions": ", ".join(versions)}


def _state(run: InfluenceRun) -> dict[str, str]:
    there, expected = run.progress()
    state = {
        "Complete": "yes" if run.is_complete else "no",
        "Chunks of results": f"{there:,} of {expected:,}",
    }
    if run.is_complete:
        return state
    if run.store.is_at_work():
        return state | {"To go on": "wait: another call is at work on it"}
    again = f"call {run.store.maker} with the same arguments, or the same command, again"
    return state | {"To go on": RUN_JOB if is_of_job(run) else again}


def is_of_job(run: InfluenceRun) -> bool:
    """Whether a run was made by the command line from a job."""
    return isinstance(run.metadata("run").get("job"), dict)


def _cost(run: InfluenceRun) -> dict[str, str]:
    store, seconds = run.store, run.attrs["seconds"]
    cost = {
        "Gradients computed": f"{run.attrs['gradients']:,}",
        **{f"Seconds for {stage}": f"{s:.1f}" for stage, s in seconds.items()},
        "Seconds together": f"{sum(seconds.values()):.1f}",
    }
    return cost if store.path is None else cost | {"Size on disk": _size_on_disk(store.path)}


def _size_on_disk(folder: Path) -> str:
    size = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # a run at work deletes what it needs no longer
                size += Path(parent, name).stat().st_size
    return format_bytes(size)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {json.dumps(inner)}" for name, inner in value.items())
    return json.dumps(value)
