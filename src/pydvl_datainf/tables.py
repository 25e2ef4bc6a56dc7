"""A run as tables for the terminal: what it holds, and its most helpful and harmful samples."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from dask.utils import format_bytes
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pydvl_datainf.block_labels import block_labels
from pydvl_datainf.evaluation import Indices, largest
from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.store import Array, Store
from pydvl_datainf.terminal import visible

End = Literal["helpful", "harmful"]

RUN_JOB = "run its job again (pydvl-datainf run JOB.yaml)"


def info_tables(run: InfluenceRun, blocks: bool = False) -> Iterator[Table]:
    """What a run holds, how far it is and what it cost.

    Args:
        run: complete or not.
        blocks: whether to list the λ of the blocks.

    Yields:
        Tables, in the order in which to show them.
    """
    names, store = sorted(run._names()), run._store
    damping = run.damping if store.present("damping") else {}
    told = {name: _told(value) for name, value in run.metadata("run").items()}
    facts = _size(run, damping) | _trust(run) | _kept(run, names) | _origin(run)
    yield facts_table("The run", facts)
    if told:
        yield facts_table("What was told of it", told)
    yield facts_table("How far it is", _state(run))
    yield facts_table("What it cost", _cost(run, store))
    if blocks:
        values = (f"{value:.3e}" for value in damping.values())
        labels = block_labels(list(damping))
        yield facts_table("Damping λ", dict(zip(labels, values, strict=True)))


def top_tables(run: InfluenceRun, position: int, k: int, ends: Sequence[End]) -> Iterator[Table]:
    """A test sample, and the training samples with the most influence on it.

    Args:
        run: complete.
        position: of the test sample.
        k: how many at each end, at most as many as the run kept.
        ends: which ends, in the order in which to show them.

    Yields:
        A table of the test sample, and one for each end.
    """
    test = run.test_ids[position]
    found = {end: run.top(k, test, end) for end in ends}
    what = "test sample" if run.attrs["fingerprint"]["query groups"] is None else "group"
    columns = _columns(run, "test").items()
    yield facts_table(f"The {what}", {name: _shown(values[position]) for name, values in columns})
    where = {sample: i for i, sample in enumerate(run.train_ids.tolist())}
    for end, (ids, influences) in found.items():
        positions = [where[sample] for sample in ids.tolist()]
        title = f"The {len(ids)} training samples most {end} to it"
        yield _ranking_table(run, title, positions, influences, end)


def mean_tables(run: InfluenceRun, k: int, ends: Sequence[End]) -> Iterator[Table]:
    """The training samples with the largest or smallest mean influence on all test samples.

    Args:
        run: complete.
        k: how many at each end; at most n are shown.
        ends: which ends, in the order in which to show them.

    Yields:
        A table for each end.
    """
    means = run.mean_influence()
    for end in ends:
        positions = largest(-means if end == "harmful" else means, k)
        title = f"The {len(positions)} training samples most {end} on average"
        yield _ranking_table(run, title, positions, means[positions], end)


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Names and values.

    Args:
        title: stands above.
        facts: a line each.

    Returns:
        A table without header.
    """
    table = titled_table(title, header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(_text(name), _text(value))
    return table


def titled_table(title: str, caption: str | None = None, header: bool = True) -> Table:
    """An empty table in our style.

    Args:
        title: stands above, and may hold square brackets.
        caption: stands below.
        header: whether names of columns are shown.

    Returns:
        The table.
    """
    return Table(
        title=_text(title, style="bold"),
        title_justify="left",
        caption=None if caption is None else _text(caption),
        caption_justify="left",
        show_header=header,
        box=SIMPLE_HEAD,
        min_width=66,
    )


# What a run holds, how far it is, what it cost


def _size(run: InfluenceRun, damping: Mapping[str, float]) -> dict[str, str]:
    told, plan, values = run.attrs["fingerprint"], run.plan, damping.values()
    groups = "" if told["query groups"] is None else f", in {plan.m:,} groups"
    return {
        "Training samples": f"{plan.n:,}",
        "Test samples": f"{told['test samples']:,}{groups}",
        "Blocks": f"{len(told['blocks']):,}",
        "Parameters in them": f"{plan.n_parameters:,}",
        "Damping λ, smallest to largest": (
            "none"
            if not METHODS[told["method"]].is_damped
            else f"{min(values):.2e} to {max(values):.2e}"
            if values
            else "not chosen yet"
        ),
        "Method": told["method"],
        "Objective": told["objective"],
    }


def _trust(run: InfluenceRun) -> dict[str, str]:
    found = run.approximation_error
    if found is None:
        return {}
    cosines = f"{found.cosines.min():.2f} to {found.cosines.max():.2f}"
    ranks = "not defined" if found.rank_correlation is None else f"{found.rank_correlation:.2f}"
    return {
        "Compared with the exact inverse": f"over {found.n:,} training, {found.m:,} test samples",
        "Cosine to it, of the blocks": cosines,
        "Rank correlation of influences": ranks,
        "Relative error, a common factor included": f"{found.score_error:.2g}",
        "What to make of these": 'docs/trust.md, "How far to trust a score"',
    }


def _kept(run: InfluenceRun, names: Sequence[str]) -> dict[str, str]:
    told = run.attrs["fingerprint"]
    scores, rows = "all", "no"
    if told["top_k"] is not None:
        scores = f"the {told['top_k']} most helpful and most harmful for each test sample"
    elif told["by_block"]:
        scores = "all, of each block"
    if run.attrs["rows_in"] is not None:
        rows = f"those in {run.attrs['rows_in']}"
    elif run.plan.rows == "zarr":
        rows = "yes, in half precision"
    return {
        "Scores kept": scores,
        "Training rows kept": rows,
        "Self-influences": "yes" if "self_influence" in names else "no",
        "Columns of training samples": _columns_in(names, "train_"),
        "Columns of test samples": _columns_in(names, "test_"),
    }


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
    again = "call run_influences with the same arguments, or the same command, again"
    return state | {"To go on": RUN_JOB if is_of_job(run) else again}


def is_of_job(run: InfluenceRun) -> bool:
    """Whether a run was made by the command line from a job."""
    return isinstance(run.metadata("run").get("job"), dict)


def _cost(run: InfluenceRun, store: Store) -> dict[str, str]:
    seconds = run.attrs["seconds"]
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


# Samples


def _columns(run: InfluenceRun, side: Literal["test", "train"]) -> dict[str, Array]:
    """Ids and metadata, with numbers before texts; a store keeps no order of its own."""
    told = sorted(run.metadata(side).items(), key=lambda item: (item[1].dtype.kind == "O", item[0]))
    return {"id": run.test_ids if side == "test" else run.train_ids, **dict(told)}


def _ranking_table(
    run: InfluenceRun, title: str, positions: Sequence[int] | Indices, influences: Array, end: End
) -> Table:
    columns = {name: values[positions] for name, values in _columns(run, "train").items()}
    table = titled_table(title, caption=_against(influences, end))
    table.pad_edge, table.padding = False, (0, 1, 0, 0)  # room for texts
    table.add_column("influence", justify="right", overflow="fold")
    for name, values in columns.items():
        numeric = values.dtype.kind in "iuf"
        table.add_column(_text(name), justify="right" if numeric else "left", overflow="fold")
    for influence, *row in zip(influences, *columns.values(), strict=True):
        table.add_row(f"{influence:+.2e}", *(_text(_shown(value)) for value in row))
    return table


def _against(influences: Array, end: End) -> str | None:
    """Of the samples at one end, those that are not what it is called: there were no others."""
    not_so = int((influences <= 0 if end == "helpful" else influences >= 0).sum())
    if not not_so:
        return None
    how_many = "all" if not_so == len(influences) else f"{not_so:,}"
    sign = "positive" if end == "helpful" else "negative"
    return f"Not {end}, since the influence is not {sign}: {how_many} of these."


def _shown(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _text(value: str, style: str = "") -> Text:
    # As Text, so that square brackets are not read as markup.
    return Text(visible(value), style=style)
