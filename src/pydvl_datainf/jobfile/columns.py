"""What is stored of the samples of a job beside their scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydvl_datainf.errors import JobError, SourceError
from pydvl_datainf.huggingface.record_values import brief, column
from pydvl_datainf.huggingface.records import LabelName, Placed
from pydvl_datainf.jobfile.schema import Job

RESERVED = ("tokens", "id")
"""Columns that a result has anyway."""


def columns_of(
    job: Job, what: str, records: Sequence[Placed], shown: Callable[[Placed], Mapping[str, Any]]
) -> tuple[dict[str, list[Any]], list[Any] | None]:
    """What is stored of the samples of one side, and their names.

    Args:
        job: names the columns.
        what: the side, "test" or "training".
        records: of the side.
        shown: what a task shows of a record.

    Returns:
        For each column its values, and the ids, or None where no column holds them.

    Raises:
        JobError: if a column that is to be shown has a name that is taken or cannot be stored.
        SourceError: if a value cannot be stored, or an id is there twice; names the line.
    """
    own = [shown(placed) for placed in records]
    further = job.columns.show + (job.columns.show_train if what == "training" else ())
    for name in further:
        if name in own[0] or name in RESERVED or not name.isidentifier():
            raise JobError(
                f"'columns.show' names '{name}', which the result already has or cannot have as a "
                "name. Call the column something else, in letters, digits and underscores."
            )
    columns = {name: [row[name] for row in own] for name in own[0]}
    columns |= {name: _stored(name, records) for name in further}
    if job.columns.id is None:
        return columns, None
    ids = _stored(job.columns.id, records, kinds=(str, int))
    seen: set[Any] = set()
    for value, (place, _) in zip(ids, records, strict=True):
        if value in seen:
            raise SourceError(f"{place}: the id {brief(value)} is there twice.")
        seen.add(value)
    return columns, ids


def _stored(
    name: str, records: Sequence[Placed], kinds: tuple[type, ...] = (str, int, float, bool)
) -> list[Any]:
    """Values of a column, all of one kind that a result can hold."""
    read = (column(placed, name) for placed in records)
    values = [str(value) if isinstance(value, LabelName) else value for value in read]
    allowed = " or all ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
    for value, (place, _) in zip(values, records, strict=True):
        if type(value) not in kinds or _KINDS[type(value)] != _KINDS[type(values[0])]:
            raise SourceError(
                f"{place}: column '{name}' holds {brief(value)}; it must be all {allowed}."
            )
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise SourceError(f"{place}: column '{name}' holds a number beyond 64 bits.")
    return values


_KINDS = {str: "texts", int: "numbers", float: "numbers", bool: "truth values"}
