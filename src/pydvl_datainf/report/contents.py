"""What stands in a report, gathered from a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pydvl_datainf.block_labels import block_labels
from pydvl_datainf.evaluation import Floats, Indices, largest
from pydvl_datainf.inverse.approximation_error import ApproximationError
from pydvl_datainf.inverse.names import UNDAMPED
from pydvl_datainf.plots import shares_of_sum
from pydvl_datainf.report.bounds import Bounds
from pydvl_datainf.report.columns import json_value, shortest
from pydvl_datainf.report.influences import (
    measures_of,
    scores_by_block,
    suspects_of,
    tops_of,
    tops_to_json,
)
from pydvl_datainf.report.labels import LabelCounts, label_counts, uncounted
from pydvl_datainf.report.pictures import (
    Picture,
    blocks_picture,
    labels_picture,
    shares_picture,
)
from pydvl_datainf.report.retraining import Retraining, retraining_of
from pydvl_datainf.report.samples import Side, samples_of
from pydvl_datainf.report.summary import Extent, Facts, facts_of, store_name, tiles_of
from pydvl_datainf.report.thumbnails import Thumbnails
from pydvl_datainf.report.trust import Trust, trust_of, trust_of_sum
from pydvl_datainf.results.facts import query_name
from pydvl_datainf.results.measures import MEASURES
from pydvl_datainf.results.reader import InfluenceRun
from pydvl_datainf.results.record import NORMALIZE


@dataclass(frozen=True, slots=True)
class Contents:
    """What stands in a report.

    Attributes:
        store: what the store is called.
        method: what was computed, in a line.
        sign: what the sign means, in a line.
        created: when the run was begun.
        query: what a row of the scores belongs to: "test sample" or "group".
        tiles: the most important facts, as name, value and where on the page to read on.
        facts: all others.
        suspects: how many training samples are suspicious by each measure.
        suspicious: which are by each measure, in words.
        held: what of the run the page holds, in sentences.
        left_out: what it does not, in sentences.
        trust: what is said of the distance from the exact inverse.
        retraining: what is said of retraining, where that was done.
        blocks: picture of their λ and errors; None where no λ takes part.
        shares: picture of their shares in the influences, where the run keeps these by block.
        labels: how influence is distributed over labels, where there are any.
        labels_picture: the same as a picture.
        data: what the tables show, as JSON holds it.
    """

    store: str
    method: str
    sign: str
    created: str
    query: str
    tiles: Sequence[tuple[str, str, str]]
    facts: Sequence[Facts]
    suspects: int
    suspicious: Sequence[str]
    held: Sequence[str]
    left_out: Sequence[str]
    trust: Trust
    retraining: Retraining | None
    blocks: Picture | None
    shares: Picture | None
    labels: LabelCounts | None
    labels_picture: Picture | None
    data: Mapping[str, Any]


def contents_of(run: InfluenceRun, bounds: Bounds, images: Path) -> Contents:
    """Gathers what stands in a report.

    Args:
        run: complete.
        bounds: how much of it.
        images: folder from which the paths of images are meant, and below which they must lie.

    Returns:
        The contents.

    Raises:
        StoreError: if the run is not complete, or damaged.
    """
    measures = measures_of(run)  # refuses a run that is not complete
    suspects, told = suspects_of(measures, bounds.suspects), run.metadata("train")
    extent = _extent(run, bounds, images, suspects, told)
    mean, error, damping = measures["mean"], run.approximation_error, _damping(run)
    trust, labels = _trust(run, error), block_labels(list(run.widths))
    by_block = scores_by_block(run)
    counts = label_counts(told, mean, largest(-mean, bounds.suspects))
    retraining, query = retraining_of(run), query_name(run)
    return Contents(
        store=store_name(run),
        method=run.attrs["method"],
        sign=run.attrs["sign"],
        created=run.attrs["created"],
        query=query,
        tiles=list(tiles_of(run, damping, trust)),
        facts=list(facts_of(run)),
        suspects=min(bounds.suspects, run.plan.n),
        suspicious=[MEASURES[m].foremost.format(queries=f"{query}s") for m in measures],
        held=list(extent.held()),
        left_out=list(extent.left_out()),
        trust=trust,
        retraining=retraining,
        blocks=blocks_picture(labels, np.array([*damping.values()]), error) if damping else None,
        shares=None if by_block is None else shares_picture(labels, by_block),
        labels=counts,
        labels_picture=None if counts is None else labels_picture(counts, mean),
        data={
            "query": query,
            **{side: made.to_json() for side, made in extent.samples.items()},
            "unit": None if retraining is None else retraining.unit,
            **_lists(extent, measures, suspects),
            "blocks": _blocks(run, labels, damping, error, by_block),
            "labels": None if counts is None else counts.to_json(),
        },
    )


def _extent(
    run: InfluenceRun,
    bounds: Bounds,
    images: Path,
    suspects: Indices,
    told: Mapping[str, Any],
) -> Extent:
    """Reads the samples that are shown: suspicious ones, and the ends of each test sample."""
    tops = tops_of(run, bounds)
    shown = np.unique(np.concatenate([suspects, *tops.all_positions()]))
    sides: dict[Side, Indices] = {"test": np.arange(tops.m), "train": shown}
    thumbnails = Thumbnails(bounds.image_bytes, images)
    samples, limit = samples_of(run, sides, bounds.characters, thumbnails)
    return Extent(run, bounds, tops, samples, limit, thumbnails, uncounted(told))


def _lists(extent: Extent, measures: Mapping[str, Floats], suspects: Indices) -> dict[str, Any]:
    """Which training samples are in the lists, and their measures."""
    train = extent.samples["train"]
    return {
        "tops": tops_to_json(extent.tops, train),
        **_columns({name: values[train.chosen] for name, values in measures.items()}),
        "suspects": train.rows(suspects),
    }


def _damping(run: InfluenceRun) -> Mapping[str, float]:
    """λ of each block, where the run has one inverse and λ takes part in it."""
    is_undamped = run.parts or run.attrs["fingerprint"]["method"] in UNDAMPED
    return {} if is_undamped else run.damping


def _trust(run: InfluenceRun, error: ApproximationError | None) -> Trust:
    if run.parts:
        return trust_of_sum()
    return trust_of(
        run.attrs["fingerprint"]["method"],
        error,
        is_query=run.attrs["rows_in"] is not None,
        is_divided=NORMALIZE in run.attrs["fingerprint"],
    )


def _columns(measures: Mapping[str, Floats]) -> dict[str, Any]:
    """Measures of the training samples shown, how to show them, and which beside influences."""
    shown = {MEASURES[name].name: (MEASURES[name], values) for name, values in measures.items()}
    return {
        "measures": {name: shortest(values) for name, (_, values) in shown.items()},
        "kinds": {name: measure.kind for name, (measure, _) in shown.items()},
        "beside": [name for name, (measure, _) in shown.items() if measure.beside_influences],
    }


def _blocks(
    run: InfluenceRun,
    labels: Sequence[str],
    damping: Mapping[str, float],
    error: ApproximationError | None,
    by_block: Floats | None,
) -> dict[str, Any]:
    widths = run.widths
    made: dict[str, Any] = {
        "names": list(widths),
        "labels": list(labels),
        "widths": list(widths.values()),
    }
    if damping:
        made["damping"] = [json_value(value) for value in damping.values()]
    if by_block is not None:
        made["shares"] = [json_value(value) for value in shares_of_sum(by_block).tolist()]
    if error is not None:
        made["errors"] = [json_value(value) for value in error.errors.tolist()]
        made["cosines"] = [json_value(value) for value in error.cosines.tolist()]
    return made
