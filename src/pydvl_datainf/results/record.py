"""The attributes of a run: which there are, their checksums, and what cannot be."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from hashlib import blake2b
from math import isfinite
from typing import Any

from pydvl_datainf.inverse.methods import METHODS
from pydvl_datainf.results.metadata import SIDES
from pydvl_datainf.results.plan import Plan

SELF_INFLUENCE = "self_influence"
APPROXIMATION = "approximation"
TRAINING_LOSS = "training_loss"
EXTRAS = (SELF_INFLUENCE, APPROXIMATION, TRAINING_LOSS)
"""Arrays that not every run has: they were not asked for, or it is a query or an old one."""

TEST_OBJECTIVE = "test objective"
"""An entry of the fingerprint, only where test samples have an objective of their own."""

SEALED = ("fingerprint", "plan", "columns")
"""Attributes whose checksum stands beside them."""

LARGEST = 2**53
"""No number of samples, parameters or tiles is larger; JSON's numbers end here."""

COLUMN = re.compile(r"string|bool|u?int(8|16|32|64)|float(16|32|64)")
"""Data types of the caller's columns."""


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


def comparison_said(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stands beside the comparison with the exact inverse.

    Args:
        attributes: of the array `approximation`.

    Returns:
        What was written there; None where it is missing or damaged.
    """
    said = {name: value for name, value in attributes.items() if name != "checksum"}
    whole = all(name in said and fits(said[name]) for name, fits in _COMPARISON.items())
    return said if whole and attributes.get("checksum") == checksum(said) else None


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


def _is_pair(value: Any) -> bool:
    return _all_in(list, _is_count)(value) and len(value) == 2


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
    "columns": _are_columns,
    "extras": _all_in(list, EXTRAS.__contains__),
    "checksum": _is(str),
    "writer": _is(str),
}
_FINGERPRINT: dict[str, Fits] = {
    "method": lambda value: type(value) is str and value in METHODS,
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
    "pieces": lambda value: _all_in(list, _is_pair)(value) and len(value) > 0,
    "rows": lambda value: value in ("memory", "zarr", "recompute"),
}
_COMPARISON: dict[str, Fits] = {
    "n": _is_count,
    "m": _is_count,
    "asked": _is_count,
    "score_error": _is_number,
    "rank_correlation": _or_none(_is_number),
}


def faults(attributes: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the attributes of a run.

    Args:
        attributes: of its store.

    Yields:
        Faults, in words; the first one is certain, others may follow from it.
    """
    yield from _misfits("", _ATTRIBUTES, attributes)
    said, plan = attributes["fingerprint"], attributes["plan"]
    yield from _misfits("fingerprint: ", _FINGERPRINT, said)
    if type(said.get(TEST_OBJECTIVE, "")) is not str:
        yield f"fingerprint: {TEST_OBJECTIVE} is {_short(said[TEST_OBJECTIVE])}"
    yield from _misfits("plan: ", _PLAN, plan)
    if plan.keys() != _PLAN.keys():
        yield f"plan has the entries {_short(sorted(plan))}"
    if plan["n"] != said["training samples"] or plan["m"] > said["test samples"]:
        yield "fingerprint and plan tell of different numbers of samples"
    sides = (("test_tile", "m"), ("train_tile", "n"), ("columns", "n_parameters"))
    yield from (f"plan: {a} is larger than {b}" for a, b in sides if plan[a] > plan[b])
    sums = [sum(counts) for counts in zip(*plan["pieces"], strict=True)]
    if sums != [len(said["blocks"]), plan["n_parameters"]]:
        yield "plan: pieces are not all blocks and parameters"
    if any(blocks > width for blocks, width in plan["pieces"]):
        yield "there are more blocks than parameters"
    if attributes["checksum"] != sealed_attributes(attributes)["checksum"]:
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
