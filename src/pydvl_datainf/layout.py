"""What a run says of itself, checked, and the arrays that follow from it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from hashlib import blake2b
from math import isfinite
from typing import Any

from pydvl_datainf.arrays import Layout
from pydvl_datainf.columns import SIDES
from pydvl_datainf.errors import StoreError
from pydvl_datainf.inverse.methods import INVERSES
from pydvl_datainf.plan import Plan
from pydvl_datainf.store import Store

ENDS = ("helpful", "harmful")
SELF_INFLUENCE = "self_influence"
APPROXIMATION = "approximation"
EXTRAS = (SELF_INFLUENCE, APPROXIMATION)
"""Arrays that a run has only where they were asked for."""

SEALED = ("fingerprint", "plan", "columns")
"""Attributes whose checksum stands beside them."""

LARGEST = 2**53
"""No number of samples, parameters or tiles is larger; JSON's numbers end here."""

ID_CHUNK = 2**16
COLUMN = re.compile(r"string|bool|u?int(8|16|32|64)|float(16|32|64)")
"""Data types of the caller's columns."""


# Arrays


def arrays_of(
    plan: Plan,
    blocks: int,
    dtype: str,
    *,
    by_block: bool,
    top_k: int | None,
    stores_rows: bool,
    columns: Mapping[str, str],
) -> dict[str, Layout]:
    """The arrays of a run, but for intermediate ones.

    Args:
        plan: how it is cut.
        blocks: L, how many there are.
        dtype: of gradients and scores.
        by_block: whether each block has scores of its own.
        top_k: how many scores are kept at either end; None = all.
        stores_rows: whether training rows are kept in the store.
        columns: data type of each column of ids and metadata.

    Returns:
        Layouts by name, `EXTRAS` among them.
    """
    n, m, L, D = plan.n, plan.m, blocks, plan.n_parameters
    t, r = plan.test_tile, plan.train_tile
    tables = {
        "squared_norms": Layout((n, L), (r, L), "float64", ("train", "block")),
        "damping": Layout((L,), (L,), "float64", ("block",)),
        "factors": Layout((m, D), (t, plan.columns), dtype, ("test", "parameter")),
        "mean_influence": Layout((n,), (r,), "float64", ("train",)),
        "block": Layout((L,), (ID_CHUNK,), "string", ("block",)),
        "width": Layout((L,), (ID_CHUNK,), "int64", ("block",)),
        SELF_INFLUENCE: Layout((n,), (r,), dtype, ("train",)),
        APPROXIMATION: Layout((2, L), (2, L), "float64", ("measure", "block")),
    }
    if stores_rows:
        tables["row_scales"] = Layout((n, L), (r, L), dtype, ("train", "block"))
        tables["rows"] = Layout((n, D), (r, D), "float16", ("train", "parameter"))
    if top_k is not None:
        k, names = min(top_k, n), ("test", "end", "rank")
        tables["top"] = Layout((m, len(ENDS), k), (t, len(ENDS), k), "int64", names)
        tables["top_scores"] = Layout((m, len(ENDS), k), (t, len(ENDS), k), dtype, names)
        tables["end"] = Layout((len(ENDS),), (ID_CHUNK,), "string", ("end",))
    elif by_block:
        tables["scores"] = Layout((m, L, n), (t, L, r), dtype, ("test", "block", "train"))
    else:
        tables["scores"] = Layout((m, n), (t, r), dtype, ("test", "train"))
    lengths = {"test": m, "train": n}
    for name, kind in columns.items():
        side = name.partition("_")[0]
        tables[name] = Layout((lengths[side],), (ID_CHUNK,), kind, (side,))
    return tables


def arrays_said(attributes: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Layout]:
    """The arrays that a run has by its attributes.

    Args:
        attributes: checked.
        columns: data type of each column.

    Returns:
        Layouts by name.
    """
    said, plan = attributes["fingerprint"], Plan(**attributes["plan"])
    return arrays_of(
        plan,
        len(said["blocks"]),
        said["dtype"],
        by_block=said["by_block"],
        top_k=said["top_k"],
        stores_rows=plan.rows == "zarr" and attributes["rows_in"] is None,
        columns=columns,
    )


def columns_in(store: Store) -> dict[str, str]:
    """The data types of columns, of a run that did not yet list them in its attributes.

    Args:
        store: of the run.

    Returns:
        Data types by name.

    Raises:
        StoreError: if there are no such columns.
    """
    names = [name for name in store.names() if _is_column(name)]
    columns = {name: column_type(store.array(name).dtype) for name in names}
    if not _are_columns(columns):
        raise StoreError(f"{store} holds columns that are not those of a run: {columns}.")
    return columns


def column_type(dtype: Any) -> str:
    """The data type of a column by the name that Zarr has for it."""
    return "string" if dtype.kind in "OT" else str(dtype.name)


# Attributes


def checksum(values: Mapping[str, Any]) -> str:
    """A checksum of what JSON can hold."""
    written = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return blake2b(written.encode(), digest_size=8).hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their checksum."""
    return {**values, "checksum": checksum(values)}


def sealed_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with the checksum of what was computed."""
    return {**attributes, "checksum": checksum({name: attributes[name] for name in SEALED})}


def opened(store: Store) -> dict[str, Any]:
    """Reads the attributes of a run, and has its arrays checked against them from then on.

    Args:
        store: of the run.

    Returns:
        Its attributes.

    Raises:
        StoreError: if there is no run, or it says what cannot be; names the attribute.
    """
    attributes = store.attributes
    wrong = next(_faults(attributes), None)
    if wrong is not None:
        raise StoreError(
            f"The attributes of {store} are damaged, or not those of a run: {wrong}. Put back a "
            "copy of its zarr.json, or make the run anew with overwrite=True."
        )
    columns = attributes["columns"] if "columns" in attributes else columns_in(store)
    store.layouts = arrays_said(attributes, columns)
    return attributes


def has_extra(store: Store, name: str) -> bool:
    """Whether one of the arrays that not every run has is there and sound."""
    try:
        return store.is_whole(name) and (name != APPROXIMATION or bool(comparison_in(store)))
    except StoreError:  # damaged metadata
        return False


def extras_in(store: Store) -> list[str]:
    """Those of the arrays that not every run has that are there and sound."""
    return [name for name in EXTRAS if has_extra(store, name)]


def comparison_in(store: Store) -> dict[str, Any] | None:
    """What stands beside the comparison with the exact inverse.

    Args:
        store: which has the array `approximation`.

    Returns:
        What was written there; None where it is missing or damaged.
    """
    attributes = store.attributes_of(APPROXIMATION)
    said = {name: value for name, value in attributes.items() if name != "checksum"}
    whole = all(name in said and fits(said[name]) for name, fits in _COMPARISON.items())
    return said if whole and attributes.get("checksum") in (None, checksum(said)) else None


# Small print

Fits = Callable[[Any], bool]


def _is(kind: type) -> Fits:
    return lambda value: type(value) is kind


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _all_in(kind: type, fits: Fits) -> Fits:
    def check(value: Any) -> bool:
        items = value.values() if type(value) is dict else value
        return type(value) is kind and all(map(fits, items))

    return check


def _is_column(name: str) -> bool:
    side, mark, column = name.partition("_")
    return side in SIDES and (column.isidentifier() if mark else True)


def _are_columns(value: Any) -> bool:
    named = type(value) is dict and all(map(_is_column, value)) and value.keys() >= set(SIDES)
    return named and all(type(k) is str and COLUMN.fullmatch(k) for k in value.values())


def _are_blocks(value: Any) -> bool:
    return _all_in(dict, _all_in(list, _is(str)))(value) and len(value) > 0


_ATTRIBUTES: dict[str, Fits] = {
    "method": _is(str),
    "sign": _is(str),
    "created": _is(str),
    "versions": _all_in(dict, _is(str)),
    "fingerprint": _is(dict),
    "plan": _is(dict),
    "rows_in": _or_none(_is(str)),
    "complete": _is(bool),
    "gradients": lambda value: value == 0 or _is_count(value),
    "seconds": _all_in(dict, _is_number),
}
_LATER: dict[str, Fits] = {  # not in all runs
    "columns": _are_columns,
    "extras": _all_in(list, EXTRAS.__contains__),
    "checksum": _is(str),
}
_FINGERPRINT: dict[str, Fits] = {
    "method": lambda value: type(value) is str and value in INVERSES,
    "objective": _is(str),
    "dtype": lambda value: value in ("float32", "float64"),
    "model": _is(dict),
    "blocks": _are_blocks,
    "damping": _is(dict),
    "training samples": _is_count,
    "training data": _is(str),
    "test samples": _is_count,
    "test data": _is(str),
    "query groups": _or_none(_is(str)),
    "by_block": _is(bool),
    "top_k": _or_none(_is_count),
    "ids and metadata": _is(str),
    "run metadata": _is(dict),
}
_PLAN: dict[str, Fits] = {field.name: _is_count for field in fields(Plan)} | {
    "rows": lambda value: value in ("memory", "zarr", "recompute")
}
_COMPARISON: dict[str, Fits] = {
    "n": _is_count,
    "m": _is_count,
    "asked": _is_count,
    "score_error": _is_number,
    "rank_correlation": _or_none(_is_number),
}


def _faults(attributes: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the attributes of a run, the most telling first."""
    yield from _misfits("", _ATTRIBUTES, attributes)
    yield from _misfits("", {k: _LATER[k] for k in _LATER if k in attributes}, attributes)
    said, plan = attributes["fingerprint"], attributes["plan"]
    yield from _misfits("fingerprint: ", _FINGERPRINT, said)
    yield from _misfits("plan: ", _PLAN, plan)
    if plan.keys() != _PLAN.keys():
        yield f"plan has the entries {_short(sorted(plan))}"
    if plan["n"] != said["training samples"] or plan["m"] > said["test samples"]:
        yield "fingerprint and plan tell of different numbers of samples"
    sides = (("test_tile", "m"), ("train_tile", "n"), ("columns", "n_parameters"))
    yield from (f"plan: {a} is larger than {b}" for a, b in sides if plan[a] > plan[b])
    if len(said["blocks"]) > plan["n_parameters"]:
        yield "there are more blocks than parameters"
    own = {name: attributes.get(name) for name in SEALED}
    if attributes.get("checksum", checksum(own)) != checksum(own):
        yield "fingerprint, plan or columns are not as they were written"


def _misfits(part: str, table: Mapping[str, Fits], values: Mapping[str, Any]) -> Iterator[str]:
    for name, fits in table.items():
        if name not in values:
            yield f"{part}{name} is missing"
        elif not fits(values[name]):
            yield f"{part}{name} is {_short(values[name])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
