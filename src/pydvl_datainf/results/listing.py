"""The training samples at the ends of a measure, as records, and these as CSV or JSON."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydvl_datainf.evaluation import Indices, largest
from pydvl_datainf.results.arrays import Array
from pydvl_datainf.results.layout import End
from pydvl_datainf.results.measures import MEASURES, Kind
from pydvl_datainf.results.reader import InfluenceRun

Format: TypeAlias = Literal["csv", "json", "jsonl"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Training samples at one end of a measure, the foremost first.

    Attributes:
        end: which; that of harmful samples is the one of large numbers, where they are suspicions.
        measure: what the numbers are called.
        kind: what they are.
        positions: of training samples.
        values: the number of each.
    """

    end: End
    measure: str
    kind: Kind
    positions: Indices
    values: Array


def rankings_of_test(
    run: InfluenceRun, position: int, k: int, ends: Sequence[End]
) -> Iterator[Ranking]:
    """The training samples with the most influence on a test sample.

    Args:
        run: complete.
        position: of the test sample.
        k: how many at each end, at most as many as the run kept.
        ends: which, in their order.

    Yields:
        A ranking for each end.
    """
    run.check_complete()
    for end in ends:
        positions, values = run.top_positions(slice(position, position + 1), k, end)
        yield Ranking(end, "influence", "influence", positions[0], values[0])


def rankings_by(run: InfluenceRun, k: int, ends: Sequence[End], by: str) -> Iterator[Ranking]:
    """The training samples at the ends of a measure.

    Args:
        run: complete.
        k: how many at each end; at most n.
        ends: which, in their order.
        by: one of `MEASURES`.

    Yields:
        A ranking for each end.
    """
    measure = MEASURES[by]
    values = measure.read(run)
    for end in ends:
        positions = largest(values if measure.is_largest(end) else -values, k)
        yield Ranking(end, measure.name, measure.kind, positions, values[positions])


def records_of(run: InfluenceRun, rankings: Iterator[Ranking]) -> list[dict[str, Any]]:
    """Rankings as records, with what is known of each training sample.

    Args:
        run: whose samples they are.
        rankings: of them.

    Returns:
        For each sample of each ranking its end, its rank from 1, its number, its id and columns.
    """
    columns, ids = run.metadata("train"), run.train_ids
    return [
        named_apart(
            {
                "end": found.end,
                "rank": rank,
                found.measure.replace(" ", "_"): plain(value),
                "id": plain(ids[i]),
            },
            {name: plain(values[i]) for name, values in columns.items()},
        )
        for found in rankings
        for rank, (i, value) in enumerate(zip(found.positions, found.values, strict=True), 1)
    ]


def named_apart(told: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a sample, and its own columns, which may be called the same.

    Args:
        told: by name; these names stay.
        columns: of the sample; of one with such a name the name gets "sample_" before it.

    Returns:
        Both, in this order.
    """
    both = dict(told)
    for name, value in columns.items():
        while name in both:
            name = f"sample_{name}"
        both[name] = value
    return both


def plain(value: Any) -> Any:
    """A value of an array as JSON holds it.

    Args:
        value: a number, truth value or text.

    Returns:
        The same as Python has it, with no more digits than it has; None where it is not finite.
    """
    if not hasattr(value, "item"):
        return value
    number = value.item()
    if not isinstance(number, float):
        return number
    return float(str(value)) if math.isfinite(number) else None


def written(records: Sequence[Mapping[str, Any]], form: Format) -> str:
    """Records as text.

    Args:
        records: with the same names, if they are to be CSV.
        form: "csv" with a header, "json", a list, or "jsonl", an object on each line.

    Returns:
        Lines, each with its end.
    """
    if form == "json":
        return json.dumps(records, indent=2) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records)
    text = io.StringIO()
    # Some versions of Python leave a text with a lone \r unquoted, which ends a line when read.
    has_returns = any("\r" in str(value) for record in records for value in record.values())
    table = csv.DictWriter(
        text,
        list(records[0]) if records else [],
        lineterminator="\n",
        quoting=csv.QUOTE_NONNUMERIC if has_returns else csv.QUOTE_MINIMAL,
    )
    table.writeheader()
    table.writerows(records)
    return text.getvalue()
