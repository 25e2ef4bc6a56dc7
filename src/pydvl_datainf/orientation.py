"""Turns images as their EXIF says they are to be seen."""

from typing import Any

ORIENTATION = 0x0112
TRANSPOSED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""For each orientation of EXIF but 1, the number of `PIL.Image.Transpose` that undoes it."""


def upright(image: Any) -> Any:
    """An image of Pillow, turned; as it is, where its EXIF cannot be read.

    Pillow's own function writes EXIF anew, and fails where another tag is odd.

    Args:
        image: perhaps not loaded yet.

    Returns:
        The image, or a copy.
    """
    try:
        method = TRANSPOSED.get(image.getexif().get(ORIENTATION))
    except Exception:  # EXIF may hold anything
        return image
    return image if method is None else image.transpose(method)
