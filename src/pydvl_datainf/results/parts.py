"""The runs that were added to a sum, as its attributes name them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydvl_datainf.results.record import is_sum


@dataclass(frozen=True, slots=True)
class Part:
    """A run that was added.

    Attributes:
        place: where it was: a path or a URL.
        method: what took the place of its inverse.
        weight: of its scores in the sum, not negative.
        checksum: of what it is: the attribute `checksum` of its store.
    """

    place: str
    method: str
    weight: float
    checksum: str


def parts_of(attributes: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of a sum.

    Args:
        attributes: of a run, checked.

    Returns:
        Its parts in the order in which they were added; none of a run that is no sum.
    """
    if not is_sum(attributes):
        return ()
    told = attributes["fingerprint"]["parts"]
    return tuple(
        Part(place, part["method"], float(part["weight"]), part["run"])
        for place, part in zip(attributes["parts_in"], told, strict=True)
    )
