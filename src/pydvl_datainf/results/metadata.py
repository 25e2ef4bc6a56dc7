"""What is known of the samples beside their scores: ids, and columns such as labels and texts."""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from pydvl_datainf.errors import BatchError
from pydvl_datainf.evaluation import as_array
from pydvl_datainf.results.arrays import Array

SIDES = ("test", "train")
DEEPEST = 100
"""How deep the metadata of a run may be nested: what is a little deeper can be made into JSON, and
then not be written with Zarr, depending on how deep the caller's own calls are."""


def columns_of(
    ids: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    lengths: Mapping[str, int],
    default_test: Sequence[Any] | None = None,
) -> dict[str, Array]:
    """Checks the ids and the metadata of both sides.

    Args:
        ids: for "test" and "train", or one of them, unique numbers or strings; None = positions.
        metadata: for "test" and "train", or one of them, a mapping (or data frame) of column name
            to one number, truth value or string for each sample.
        lengths: samples of each side.
        default_test: ids of the test side where none are given.

    Returns:
        `test` and `train`, the ids, and columns named `test_label` and so on.

    Raises:
        BatchError: if a side, a length or a type does not fit, or ids are not unique.
    """
    for given, what, known in ((ids, "ids", SIDES), (metadata, "metadata", (*SIDES, "run"))):
        if given is not None and not isinstance(given, Mapping):
            raise BatchError(f"{what} must be a mapping with {list(known)}, not {given!r:.100}.")
        unknown = set(given or {}) - set(known)
        if unknown:
            keys = sorted(unknown, key=repr)
            raise BatchError(f"{what} has the keys {keys}; it takes {list(known)}.")
    columns = {}
    for side in SIDES:
        default = default_test if side == "test" else None
        values = (ids or {}).get(side, np.arange(lengths[side]) if default is None else default)
        columns[side] = _column(values, lengths[side], f"ids of the {side} data")
        if (
            columns[side].dtype.kind not in "iuO"
            or len(set(columns[side].tolist())) != lengths[side]
        ):
            raise BatchError(f"The ids of the {side} data must be unique integers or strings.")
        for name, values in _by_name((metadata or {}).get(side, {}), side).items():
            if not str(name).isidentifier():
                raise BatchError(
                    f"The column {name!r} of the {side} data needs a name like 'label'."
                )
            what = f"column '{name}' of the {side} data"
            columns[f"{side}_{name}"] = _column(values, lengths[side], what)
    return columns


def group_codes(labels: Sequence[Any], m: int) -> tuple[tuple[int, ...], list[Any]]:
    """Numbers the groups of queries.

    Args:
        labels: for each test sample that of its group.
        m: test samples.

    Returns:
        For each test sample the number of its group, and the labels in order of first appearance.

    Raises:
        BatchError: if they are not all integers or all strings, or not one for each test sample.
    """
    listed: list[Hashable] = _column(labels, m, "labels in query_groups").tolist()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(listed))}
    return tuple(numbers[label] for label in listed), list(numbers)


def json_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file holds of a mapping.

    Args:
        values: numbers, strings, truth values, None, and lists and mappings of these.

    Returns:
        The same after writing and reading.

    Raises:
        BatchError: if JSON cannot hold a value, or they are nested too deeply.
    """
    what = f"The metadata of the run must fit into JSON, nested at most {DEEPEST} deep"
    try:
        text = json.dumps(dict(values), allow_nan=False, ensure_ascii=False)
        text.encode()  # half a surrogate pair cannot be written
        read = dict(json.loads(text))
        depth = _depth(read)
    except (TypeError, ValueError, RecursionError) as error:
        raise BatchError(f"{what}: {error}.") from error
    if depth > DEEPEST:
        raise BatchError(f"{what}; they are {depth} deep.")
    return read


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0)


def digest(columns: Mapping[str, Array]) -> str:
    """A checksum of columns, with their names."""
    summed = hashlib.blake2b(digest_size=8)
    for name, values in columns.items():
        kind = values.dtype.kind.replace("u", "i")  # the same numbers are the same
        summed.update(repr((name, kind, values.tolist())).encode())
    return summed.hexdigest()


def _by_name(columns: Any, side: str) -> dict[Any, Any]:
    try:
        return dict(columns)
    except (TypeError, ValueError) as error:
        raise BatchError(
            f"The metadata of the {side} data must be a mapping of names to columns, or a data "
            f"frame, not a {type(columns).__name__}. Leave {side!r} out where there is none."
        ) from error


def _column(values: Any, length: int, what: str) -> Array:
    array = _array(values, what)
    if array.shape != (length,):
        raise BatchError(
            f"The {what} have shape {array.shape}; expected ({length},), one a sample."
        )
    if array.dtype.kind in "UO":
        array = np.array([_text(value, what) for value in array.tolist()], dtype=object)
    elif array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise BatchError(
            f"The {what} must be numbers of at most 64 bits, truth values or strings, not "
            f"{array.dtype}."
        )
    return array


def _array(values: Any, what: str) -> Array:
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    listed = values if isinstance(values, list | tuple) else ()
    if listed and all(isinstance(v, int | np.integer) and type(v) is not bool for v in listed):
        return _whole_numbers(listed, what)
    if any(isinstance(value, str) for value in listed):
        # An array of text would give each the room of the longest, and cut NUL off their ends.
        return np.fromiter(listed, dtype=object, count=len(listed))
    try:
        array = as_array(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, or of a kind of torch's alone
        raise BatchError(
            f"The {what} must be one number, truth value or string for each sample, in a list or "
            f"an array of NumPy: {error}"
        ) from error
    for value, kept in zip(listed, array.reshape(-1).tolist(), strict=False):
        if isinstance(value, int | np.integer) and isinstance(kept, float) and kept != int(value):
            raise BatchError(
                f"The {what} hold {value} beside floating numbers, which cannot hold it. Give "
                "whole numbers alone, or floating ones alone."
            )
    return array


def _whole_numbers(values: Sequence[int], what: str) -> Array:
    """Those that one type of 64 bits holds: NumPy would make floating numbers of others."""
    for dtype in (np.int64, np.uint64):
        bounds = np.iinfo(dtype)
        if bounds.min <= min(values) and max(values) <= bounds.max:
            return np.array(values, dtype=dtype)
    raise BatchError(
        f"The {what} hold whole numbers that 64 bits do not hold together, from {min(values)} to "
        f"{max(values)}. Give them as strings."
    )


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BatchError(f"The {what} must be all strings or all numbers; found {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BatchError(f"The {what} hold half of a surrogate pair: {value!r}.") from error
    return value
