"""Fashion-MNIST: pictures of clothes, 28 by 28 pixels, in ten classes."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FOLDER = "/usr/share/datasets/fashion-mnist"
Batch = dict[str, Tensor]

HEADER = {"images": 16, "labels": 8}  # bytes in an IDX file before its data


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures with their classes.

    Args:
        pixels: from -1 (black) to 1 (white), (n, 1, 28, 28).
        classes: from 0 to 9, (n,).
    """

    pixels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, chosen: Tensor) -> "Pictures":
        return Pictures(self.pixels[chosen], self.classes[chosen])

    @property
    def patches(self) -> Tensor:
        """What the model sees, (n, 4, 14, 14): each 2 by 2 pixels as four channels.

        That only rearranges the entries, so white noise stays white; it makes the model four
        times as fast.
        """
        return functional.pixel_unshuffle(self.pixels, 2)


def to_pixels(patches: Tensor) -> Tensor:
    return functional.pixel_shuffle(patches, 2)


def read_pictures(folder: Path, part: str) -> Pictures:
    """All pictures of a part, "train" or "t10k"."""
    pixels = torch.from_numpy(_idx(folder, part, "images")).float().view(-1, 1, 28, 28)
    return Pictures(pixels / 127.5 - 1, torch.from_numpy(_idx(folder, part, "labels")).long())


def _idx(folder: Path, part: str, kind: str) -> np.ndarray:
    file = folder / f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"
    if not file.exists():
        raise SystemExit(
            f"{file} is missing. On Debian and Ubuntu: apt-get install dataset-fashion-mnist. "
            "Elsewhere give the folder of the four IDX files by --data."
        )
    return np.frombuffer(gzip.decompress(file.read_bytes())[HEADER[kind] :], np.uint8).copy()


def of_classes(pictures: Pictures, classes: Sequence[int]) -> Pictures:
    return pictures[torch.isin(pictures.classes, torch.tensor(classes))]


def drawn(pictures: Pictures, classes: Sequence[int], each: int, seed: int) -> Pictures:
    """So many random pictures of each class, class by class."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for c in classes:
        own = (pictures.classes == c).nonzero()[:, 0]
        chosen.append(own[torch.randperm(len(own), generator=generator)[:each]])
    return pictures[torch.cat(chosen)]


def to_batches(pictures: Pictures, labels: Tensor, first_seed: int, size: int) -> list[Batch]:
    """Batches in the order of the pictures, each picture with a seed of its own."""
    whole = {
        "images": pictures.patches,
        "seed": first_seed + torch.arange(len(pictures)),
        "class_labels": labels,
    }
    parts = [tensor.split(size) for tensor in whole.values()]
    return [dict(zip(whole, part, strict=True)) for part in zip(*parts, strict=True)]
