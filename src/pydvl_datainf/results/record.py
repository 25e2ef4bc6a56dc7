"""The attributes of a run: which there are, their checksums, and what cannot be."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from hashlib import blake2b
from math import isfinite
from typing import Any

from pydvl_datainf.errors import ModelError, SourceError
from pydvl_datainf.inverse.compression import Compression
from pydvl_datainf.inverse.iteration import Iteration
from pydvl_datainf.inverse.names import EKFAC, NAMES, SETTINGS, WITH_SETTINGS
from pydvl_datainf.results.arrays import CURVATURE
from pydvl_datainf.results.metadata import SIDES
from pydvl_datainf.results.plan import Plan

SELF_INFLUENCE = "self_influence"
APPROXIMATION = "approximation"
TRAINING_LOSS = "training_loss"
EXTRAS = (SELF_INFLUENCE, APPROXIMATION, TRAINING_LOSS)
"""Arrays that not every run has: they were not asked for, or it is a query or an old one."""

TEST_OBJECTIVE = "test objective"
"""An entry of the fingerprint, only where test samples have an objective of their own."""

COMPRESSION = "compression"
"""An entry of the fingerprint, only where rows are compressed."""

PRECONDITIONER = "preconditioner"
"""An entry of the fingerprint, only where gradients are in the coordinates of an optimizer."""

NORMALIZE = "normalize"
"""An entry of the fingerprint, only where scores are divided by the norms of training rows."""

OF_ONE_INVERSE = ("squared_norms", "curvature_norms", "damping", APPROXIMATION)
"""Arrays that a sum of runs has not: each of its parts has its own."""

SEALED = ("fingerprint", "plan", "columns")
"""Attributes whose checksum stands beside them."""

LARGEST = 2**53
"""No number of samples, parameters or tiles is larger; JSON's numbers end here."""

COLUMN = re.compile(r"string|bool|u?int(8|16|32|64)|float(16|32|64)")
"""Data types of the caller's columns."""


NO_ROWS = "none"
"""How a sum of runs keeps rows."""


def is_sum(attributes: Mapping[str, Any]) -> bool:
    """Whether a run is a sum of others, by its attributes."""
    return "parts" in attributes["fingerprint"]


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


def compression_said(fingerprint: Mapping[str, Any]) -> Compression | None:
    """How the rows of a run are compressed; None where they are whole.

    Args:
        fingerprint: of the run.

    Returns:
        It, with the number of samples that the bases are learned from.

    Raises:
        SourceError: if a number is out of range.
    """
    if COMPRESSION not in fingerprint:
        return None
    said = fingerprint[COMPRESSION]
    ranks = tuple(said["ranks"]) if "ranks" in said else None
    return Compression(
        said["rank"],
        said["basis_sample"],
        said["basis_seed"],
        ranks,
        said.get("sides"),
        {block: tuple(layer) for block, layer in said.get("layers", {}).items()},
    )


def compression_entry(
    compression: Compression | None, widths: Mapping[str, int], n: int
) -> dict[str, Any]:
    """What tells of compressed rows in a fingerprint.

    Args:
        compression: how; None = not.
        widths: d_l of each block.
        n: training samples.

    Returns:
        An entry, or none.
    """
    if compression is None:
        return {}
    told = {
        "rank": compression.rank,
        "basis_sample": compression.sample_size(n),
        "basis_seed": compression.basis_seed,
        "widths": list(widths.values()),
    }
    chosen = {} if compression.ranks is None else {"ranks": list(compression.ranks)}
    if compression.sides is None:
        return {COMPRESSION: told | chosen}
    layers = {block: list(layer) for block, layer in compression.layers.items()}
    return {COMPRESSION: told | {"sides": compression.sides, "layers": layers}}


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


def _is_part(value: Any) -> bool:
    is_named = type(value) is dict and value.keys() == {"method", "weight", "run"}
    texts = is_named and type(value["method"]) is type(value["run"]) is str
    return texts and _is_number(value["weight"]) and value["weight"] >= 0


def _are_parts(value: Any) -> bool:
    return _all_in(list, _is_part)(value) and len(value) > 0


def _are_blocks(value: Any) -> bool:
    return _all_in(dict, _all_in(list, _is(str)))(value) and len(value) > 0


def _is_layer(value: Any) -> bool:
    return type(value) is list and [type(v) for v in value] == [int, int, bool] and min(value) >= 0


def _are_layers(value: Any) -> bool:
    return _all_in(dict, _is_layer)(value) and len(value) > 0


def _are_sides(told: Mapping[str, Any]) -> bool:
    """Whether a share is told of compressed rows, and the layers, if there are any, behind it."""
    layers = told.get("layers")
    return type(told.get("sides")) is float and (layers == {} or _are_layers(layers))


def _is_curvature(value: Any) -> bool:
    if type(value) is not dict or not _is_count(value.get("rows")):
        return False
    others = {name: told for name, told in value.items() if name != "rows"}
    drawn = others.keys() == {"labels", "label_seed"} and value["rows"] == 1
    if drawn:
        return others["labels"] == "drawn" and type(others["label_seed"]) is int
    return others == {"labels": "all"}


def _is_preconditioner(value: Any) -> bool:
    names = {"kind": str, "step": int, "checksum": str}
    is_whole = type(value) is dict and value.keys() == names.keys()
    return is_whole and all(type(value[name]) is kind for name, kind in names.items())


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
    "method": lambda value: type(value) is str and value in NAMES,
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
_MAY_TELL: dict[str, Fits] = {
    TEST_OBJECTIVE: _is(str),
    CURVATURE: _is_curvature,
    PRECONDITIONER: _is_preconditioner,
    NORMALIZE: lambda value: value == "unit",
}
"""What may be in a fingerprint."""

_SUM: dict[str, Fits] = {"method": _is(str), "parts": _are_parts}
"""What is otherwise in the fingerprint of a sum of runs."""

_PLAN: dict[str, Fits] = {field.name: _is_count for field in fields(Plan)} | {
    "pieces": lambda value: _all_in(list, _is_pair)(value) and len(value) > 0,
    "rows": lambda value: value in ("memory", "zarr", "recompute", NO_ROWS),
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
    of_sum = is_sum(attributes)
    yield from _misfits("fingerprint: ", _FINGERPRINT | (_SUM if of_sum else {}), said)
    if of_sum:
        yield from _misfits("", {"parts_in": _all_in(list, _is(str))}, attributes)
        if len(attributes["parts_in"]) != len(said["parts"]):
            yield "parts_in are not the places of all parts"
    yield from _misfits("fingerprint: ", {k: _MAY_TELL[k] for k in _MAY_TELL if k in said}, said)
    yield from _misfits("plan: ", _PLAN, plan)
    if said["method"] == EKFAC:
        yield from _misfits("fingerprint: ", {"layers": _are_layers}, said)
        if not said["layers"].keys() <= said["blocks"].keys():
            yield "fingerprint: layers are not blocks"
    if plan.keys() != _PLAN.keys():
        yield f"plan has the entries {_short(sorted(plan))}"
    if not _or_none(_is_number)(attributes.get("residual")):
        yield f"residual is {_short(attributes['residual'])}"
    if not of_sum and not _has_settings(said):
        yield f"fingerprint: {SETTINGS} is {_short(said.get(SETTINGS))}"
    yield from _disagreements(said, plan, of_sum=of_sum)
    if not of_sum and not _has_compression(said, plan, is_complete=attributes["complete"]):
        yield f"fingerprint: {COMPRESSION} is {_short(said.get(COMPRESSION))}"
    if attributes["checksum"] != sealed_attributes(attributes)["checksum"]:
        yield "fingerprint, plan or columns are not as they were written"


def _disagreements(
    said: Mapping[str, Any], plan: Mapping[str, Any], *, of_sum: bool
) -> Iterator[str]:
    """Where fingerprint and plan, which are each as they should be, do not go together."""
    if plan["n"] != said["training samples"] or plan["m"] > said["test samples"]:
        yield "fingerprint and plan tell of different numbers of samples"
    sides = (("test_tile", "m"), ("train_tile", "n"), ("columns", "n_parameters"))
    if of_sum != (plan["rows"] == NO_ROWS):
        yield "plan: rows are those of a sum, or of a run, and this is the other"
    yield from (f"plan: {a} is larger than {b}" for a, b in sides if plan[a] > plan[b])
    sums = [sum(counts) for counts in zip(*plan["pieces"], strict=True)]
    if sums != [len(said["blocks"]), plan["n_parameters"]]:
        yield "plan: pieces are not all blocks and parameters"
    if any(blocks > width for blocks, width in plan["pieces"]):
        yield "there are more blocks than parameters"


def _has_settings(said: Mapping[str, Any]) -> bool:
    """Whether those of the method, if there are any, are of its kind."""
    told = said.get(SETTINGS, {})
    if said["method"] not in WITH_SETTINGS:
        return bool(told == {})
    try:
        Iteration(**told)
    except (TypeError, ModelError):
        return False
    return True


def _has_compression(
    said: Mapping[str, Any], plan: Mapping[str, Any], *, is_complete: bool
) -> bool:
    """Whether there is none, or one that fits the blocks and the plan."""
    if COMPRESSION not in said:
        return True
    told = said[COMPRESSION]
    names = {"rank", "basis_sample", "basis_seed", "widths"}
    behind = {"sides", "layers"}
    if type(told) is not dict or told.keys() - {"ranks"} - behind != names:
        return False
    if behind & told.keys() and not _are_sides(told):
        return False
    if "ranks" in told and not (told["rank"] == "auto" and _all_in(list, _is_count)(told["ranks"])):
        return False
    try:
        compression = compression_said(said)
    except SourceError:
        return False
    assert compression is not None
    if not (
        _all_in(list, _is_count)(told["widths"]) and len(told["widths"]) == len(said["blocks"])
    ):
        return False
    if "ranks" in told and len(told["ranks"]) != len(told["widths"]):
        return False
    widths = dict(zip(said["blocks"], told["widths"], strict=True))
    if any(o * i != widths.get(block) for block, (o, i, _) in compression.layers.items()):
        return False
    if compression.layers.keys() != compression.kept_of_sides.keys():
        return False
    most, kept = (c.widths(widths, plan["n"]) for c in (compression.opened(), compression))
    fits = all(kept[block] <= most[block] for block in widths) and plan["rows"] == "zarr"
    is_done = not (compression.is_open and is_complete)
    return bool(fits and is_done and sum(kept.values()) == plan["n_parameters"])


def _misfits(part: str, table: Mapping[str, Fits], values: Mapping[str, Any]) -> Iterator[str]:
    for name, fits in table.items():
        if name not in values:
            yield f"{part}{name} is missing"
        elif not fits(values[name]):
            yield f"{part}{name} is {_short(values[name])}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
