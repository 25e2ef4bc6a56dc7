"""Images, and what a diffusion model is told of them."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pydvl_datainf.errors import SourceError
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.record_values import text_column
from pydvl_datainf.huggingface.records import Place, Placed, check_is_file
from pydvl_datainf.orientation import upright


@dataclass(frozen=True, slots=True)
class ImageSamples(Dataset[Mapping[str, Tensor]]):
    """Images of one size with their seeds and conditions.

    Args:
        samples: for each image `images` (C, H, W), `seed` and conditions.
    """

    samples: Sequence[Mapping[str, Tensor]]

    @classmethod
    def from_images(
        cls, images: Sequence[Tensor], seeds: Sequence[int], conditions: Mapping[str, Sequence[Any]]
    ) -> "ImageSamples":
        """Puts together what is known of each image.

        Args:
            images: or latents, (C, H, W) each.
            seeds: of the noise, one for each image.
            conditions: for each name under which the model takes them, one for each image.

        Returns:
            The samples.
        """
        return cls(
            [
                {
                    "images": image,
                    "seed": torch.tensor(seed),
                    **{name: torch.as_tensor(values[i]) for name, values in conditions.items()},
                }
                for i, (image, seed) in enumerate(zip(images, seeds, strict=True))
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Mapping[str, Tensor]:
        return self.samples[i]

    @property
    def lengths(self) -> list[int]:
        """One for each image: all take as long."""
        return [1] * len(self.samples)

    def collate(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Stacks samples to a batch."""
        batch: dict[str, Tensor] = default_collate(list(samples))
        return batch

    def to_loader(self, batch_size: int) -> DataLoader[Any]:
        """Batches in the order of the images.

        Args:
            batch_size: images in a batch; the last may have fewer.

        Returns:
            A loader.
        """
        return DataLoader(self, batch_size, collate_fn=self.collate)


def seed_of(image: Tensor) -> int:
    """A seed that follows from an image's entries, so that the same image has the same noise."""
    return zlib.crc32(image.contiguous().numpy().tobytes())


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Reads images as a model takes them: scaled from -1 to 1, in its size and channels.

    They are turned as their EXIF says, as `datasets` does; what is transparent is as the file has
    it.

    Args:
        folder: from which relative paths are meant.
        channels: 1 (grey) or 3 (red, green, blue).
        size: height and width in pixels; others are scaled, keeping their proportions, and cut.
        column: of the image's path.
    """

    folder: Path
    channels: int
    size: tuple[int, int]
    column: str = "image"

    def read(self, placed: Placed) -> Tensor:
        """Reads one image.

        Args:
            placed: a record and its place.

        Returns:
            The image, (C, H, W), float32.

        Raises:
            SourceError: if there is no such file, no image in it, or one of more than 8 bits whose
                range is not known; names the line.
        """
        name = text_column(placed, self.column)
        pil = imported("PIL.Image")
        try:
            check_is_file(self.folder / name)
            with pil.open(self.folder / name) as file:
                mode = file.mode
                image = upright(file).convert("L" if self.channels == 1 else "RGB")
        except Exception as error:  # decoders raise anything about damaged files
            raise SourceError(f"{placed[0]}: the image {name} cannot be read: {error}") from error
        if mode.startswith(("I", "F")):  # Pillow would cut their numbers at 255
            raise SourceError(
                f"{placed[0]}: the image {name} has more than 8 bits a channel (mode {mode}), and "
                "how bright they are meant is not known. Convert it to 8 bits, or give arrays "
                "(.npz) of bytes or from -1 to 1."
            )
        if image.size != self.size[::-1]:
            image = imported("PIL.ImageOps").fit(image, self.size[::-1])
        return scaled(np.asarray(image))


def scaled(image: Any) -> Tensor:
    """Bytes (H, W) or (H, W, C) as numbers from -1 to 1, (C, H, W)."""
    whole = torch.from_numpy(np.array(image, dtype=np.float32)) / 127.5 - 1
    return whole.unsqueeze(0) if whole.ndim == 2 else whole.permute(2, 0, 1).contiguous()


def read_arrays(path: Path) -> tuple[list[Placed], list[Tensor]]:
    """Reads images from arrays.

    Args:
        path: a file named .npz with `images`, either bytes (n, H, W) or (n, H, W, C), or floating
            (n, C, H, W) which are taken as they are (images from -1 to 1, or latents), and further
            arrays (n,), which become columns.

    Returns:
        Records of the further arrays, and the images, (C, H, W) each.

    Raises:
        SourceError: if there is no such file, or its arrays are of other shapes.
    """
    try:
        check_is_file(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path} cannot be read as .npz: {error}") from error
    images = arrays.pop("images", None)
    if images is None or images.ndim not in (3, 4) or images.dtype.kind not in "uf":
        raise SourceError(f"{path} needs an array 'images' of bytes or of floating numbers.")
    wrong = [name for name, values in arrays.items() if values.shape != (len(images),)]
    if wrong or not len(images):
        raise SourceError(f"{path}: {', '.join(wrong) or 'images'} must have one entry an image.")
    if images.dtype.kind == "u":
        tensors = [scaled(image) for image in images]
    else:
        tensors = [torch.from_numpy(np.array(image, dtype=np.float32)) for image in images]
    columns = {name: values.tolist() for name, values in arrays.items()}
    records: list[Placed] = [
        (Place(path, "row", i), {name: values[i] for name, values in columns.items()})
        for i in range(len(images))
    ]
    return records, tensors
