"""Columns of samples as JSON holds them: kinds, long texts cut, numbers that JSON lacks as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from pydvl_datainf.evaluation import Indices
from pydvl_datainf.results.arrays import Array

Kind: TypeAlias = Literal["number", "integer", "truth", "text", "image"]

LARGEST = 2**53
"""JavaScript's numbers tell all smaller integers apart."""

LIMITS = (20_000, 10_000, 5_000, 2_000, 1_000, 500, 250, 100)
"""Characters at which texts may be cut."""

LONGEST_PATH = 1000
"""Characters of a path of an image; longer texts are no paths, whatever their column is called."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Column:
    """What is known of each of some samples.

    Attributes:
        name: of the column.
        kind: what its values are.
        values: as JSON holds them; where one is cut, "…" follows and `cut` has its position.
        cut: positions of the values that are cut.
    """

    name: str
    kind: Kind
    values: list[Any]
    cut: list[int]

    def to_json(self) -> dict[str, Any]:
        """The column for the page."""
        return {
            "name": self.name,
            "kind": self.kind,
            "values": self.values,
            "cut": self.cut,
        }


def kind_of(name: str, values: Array) -> Kind:
    """What the values of a column are.

    Args:
        name: of the column.
        values: all of them, (n,).

    Returns:
        "image" where texts are paths of images: by the name of the column, as `pydvl-datainf run`
        calls it, or since all end like one; and since none is too long to be one.
    """
    kinds: dict[str, Kind] = {"b": "truth", "i": "integer", "u": "integer", "f": "number"}
    if values.dtype.kind in kinds:
        return kinds[values.dtype.kind]
    texts = values.tolist()
    if not texts or any(len(text) > LONGEST_PATH for text in texts):
        return "text"
    paths = name == "image" or all(text.lower().endswith(PICTURES) for text in texts)
    return "image" if paths else "text"


def ordered(columns: Mapping[str, Array]) -> list[str]:
    """Names of columns in the order in which to show them: labels, texts, numbers, each as given.

    Args:
        columns: by name.

    Returns:
        All names.
    """
    return sorted(columns, key=lambda name: _rank(name, columns[name]))


def length_limit(columns: Sequence[Array], characters: int) -> int:
    """The most characters of each text with which all texts together are not too many.

    Args:
        columns: those of texts count, others do not.
        characters: of all texts together.

    Returns:
        One of `LIMITS`; the smallest where none suffices.
    """
    texts = [values for values in columns if values.dtype.kind == "O"]
    lengths = np.array([len(text) for values in texts for text in values.tolist()], dtype=np.int64)
    fitting = (limit for limit in LIMITS if np.minimum(lengths, limit).sum() <= characters)
    return next(fitting, LIMITS[-1])


def column_of(name: str, values: Array, chosen: Indices, limit: int) -> Column:
    """A column of some samples.

    Args:
        name: of the column.
        values: of all samples, (n,).
        chosen: positions of the samples.
        limit: characters at which texts are cut.

    Returns:
        The column.
    """
    kind, own = kind_of(name, values), values[chosen].tolist()
    if kind == "image":  # told apart, as each has its picture
        return _told_apart(name, kind, own, chosen, limit)
    if kind != "text":
        return Column(name, kind, [json_value(value) for value in own], [])
    shown = [f"{text[:limit]}…" if len(text) > limit else text for text in own]
    return Column(name, kind, shown, _longer(own, limit))


def ids_of(values: Array, chosen: Indices, limit: int) -> Column:
    """The ids of some samples; different ones stay different when they are cut.

    Args:
        values: of all samples, (n,).
        chosen: positions of the samples.
        limit: characters at which ids are cut; their position then follows.

    Returns:
        The column.
    """
    own = values[chosen].tolist()
    if values.dtype.kind != "O":
        return Column("id", kind_of("id", values), [json_value(value) for value in own], [])
    return _told_apart("id", "text", own, chosen, limit)


def _told_apart(name: str, kind: Kind, texts: Sequence[str], chosen: Indices, limit: int) -> Column:
    first: dict[str, int] = {}
    for text, position in zip(texts, chosen.tolist(), strict=True):
        first.setdefault(text, position)
    shown = [f"{t[:limit]}… (at {first[t]})" if len(t) > limit else t for t in texts]
    return Column(name, kind, shown, _longer(texts, limit))


def _longer(texts: Sequence[str], limit: int) -> list[int]:
    return [i for i, text in enumerate(texts) if len(text) > limit]


def json_value(value: Any) -> Any:
    """A value as JSON and JavaScript hold it: numbers that they lack become texts.

    Args:
        value: a number, truth value or text.

    Returns:
        The value, or its text.

    Example:
        >>> json_value(float("nan")), json_value(2**60), json_value(-0.0)
        ('NaN', '1152921504606846976', 0.0)
    """
    if isinstance(value, float):
        if np.isnan(value):
            return "NaN"
        if np.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value or 0.0  # no negative zero
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < LARGEST else str(value)
    return value


def shortest(values: Array) -> list[Any]:
    """Floating numbers as JSON with no more digits than their dtype has.

    Args:
        values: floating, (k,).

    Returns:
        Numbers, which rounded to the dtype are the values.
    """
    return [json_value(float(str(value))) for value in values]


def _rank(name: str, values: Array) -> int:
    if name == "label":
        return 0
    return {"truth": 1, "image": 2, "text": 3, "integer": 4, "number": 5}[kind_of(name, values)]
