"""What the adapters learn: four more classes of clothes, or four styles of the known ones."""

from collections.abc import Mapping

from pictures import Pictures, drawn, of_classes
from styles import STYLES, drawn_styles

BASE, TUNED = range(6), range(6, 10)  # the first six classes, and the numbers of what is new
NAMES: Mapping[str, Mapping[int, str]] = {
    "subject": dict(zip(TUNED, ("shirt", "sneaker", "bag", "ankle boot"), strict=True)),
    "style": {c: style.__name__ for c, style in zip(TUNED, STYLES, strict=True)},
}


def drawn_for(task: str, pictures: Pictures, each: int, seed: int) -> Pictures:
    """So many random pictures of each of the four."""
    if task == "subject":
        return drawn(pictures, TUNED, each, seed)
    return drawn_styles(of_classes(pictures, BASE), each, TUNED[0], seed)
