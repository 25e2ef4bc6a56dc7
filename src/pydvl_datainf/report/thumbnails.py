"""Small copies of images, as data: URLs."""

import warnings
from base64 import b64encode
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from pydvl_datainf.orientation import upright

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Which are read. Pillow hands some others to programs that it starts."""

SIDE = 96
"""Pixels of the longer side, at most."""


class Thumbnails:
    """Makes small copies of images until they take too much together.

    Args:
        budget: bytes of all copies together.
        root: folder below which images must lie; the paths, which may come from anybody, can name
            any other file of whoever writes the page.
    """

    def __init__(self, budget: int, root: Path):
        self.budget = budget
        self.root = root
        self.unreadable = 0
        self.left_out = 0

    def urls(self, names: Iterable[str], folders: Sequence[Path]) -> dict[str, str]:
        """Small copies of images.

        Args:
            names: paths of the images, some of them often.
            folders: from which relative paths may be meant; the first that has a file is taken.

        Returns:
            A data: URL for each path where there is an image and room for it.
        """
        made = {}
        for name in dict.fromkeys(name for name in names if name):
            url = self._read(name, folders)
            if url is None:
                self.unreadable += 1
            elif len(url) > self.budget:
                self.left_out += 1
            else:
                self.budget -= len(url)
                made[name] = url
        return made

    def _read(self, name: str, folders: Sequence[Path]) -> str | None:
        for folder in folders:
            try:
                path = (folder / name).resolve()  # where links lead to
                if path.is_relative_to(self.root.resolve()) and path.is_file():
                    return small_copy(path)
            except (OSError, ValueError, RuntimeError):  # no such name, no right, a loop, no image
                continue
        return None


def small_copy(path: Path) -> str:
    """A small copy of an image.

    Args:
        path: of a file.

    Returns:
        A data: URL of PNG, if the image is small anyway, or of JPEG.

    Raises:
        OSError: if it is no image of the known formats, or too large to be one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=FORMATS) as file:
                small = max(file.size) <= SIDE
                file.draft("RGB", (SIDE, SIDE))  # JPEG: decodes no more than needed
                seen_through = "A" in file.getbands() or "transparency" in file.info
                image = file.convert("RGBA" if seen_through else "RGB").convert("RGBA")
                image = upright(image)
        except Exception as error:  # decoders raise anything about damaged files
            raise OSError(f"{path} cannot be read: {error}") from error
    image.thumbnail((SIDE, SIDE))
    stream = BytesIO()
    if small:
        image.save(stream, "PNG", optimize=True)
    else:
        white = Image.new("RGBA", image.size, "white")
        Image.alpha_composite(white, image).convert("RGB").save(stream, "JPEG", quality=75)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{b64encode(stream.getvalue()).decode()}"
