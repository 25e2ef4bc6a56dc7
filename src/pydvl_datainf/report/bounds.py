"""How much of a run a page holds."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Bounds:
    """What keeps a page small enough to be opened and sent.

    Args:
        k: training samples shown at either end of each test sample, at most.
        tests: test samples shown, at most: the first ones.
        suspects: training samples in the list of suspicious ones, by each measure, at most.
        characters: of all texts together, about; longer texts are cut first, none below 100.
        image_bytes: of all thumbnails together, at most; the others are shown as paths.

    Raises:
        ValueError: if one is negative, or `k`, `tests` or `suspects` is zero.
    """

    k: int = 10
    tests: int = 500
    suspects: int = 50
    characters: int = 2_000_000
    image_bytes: int = 2_000_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), field.name in ("k", "tests", "suspects")
            if value < least:
                raise ValueError(f"{field.name} must be at least {int(least)}, got {value}.")
