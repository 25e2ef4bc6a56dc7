"""Four ways to render a picture; each keeps its size, 28 by 28, and its range, from -1 to 1."""

import torch
from pictures import Pictures
from torch import Tensor
from torch.nn import functional

BAYER = torch.tensor([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])


def negative(x: Tensor) -> Tensor:
    return -x


def outline(x: Tensor) -> Tensor:
    """The change to the next pixel, downwards and to the right."""
    down = functional.pad(x, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    right = functional.pad(x, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    return (down.abs() + right.abs() - 1).clamp(-1, 1)


def halftone(x: Tensor) -> Tensor:
    """Black and white dots by ordered dithering."""
    thresholds = (BAYER.repeat(7, 7) + 0.5) / 8 - 1
    return torch.where(x > thresholds, 1.0, -1.0)


def mosaic(x: Tensor) -> Tensor:
    """Tiles of 4 by 4 pixels."""
    return functional.interpolate(functional.avg_pool2d(x, 4), scale_factor=4.0)


STYLES = (negative, outline, halftone, mosaic)


def drawn_styles(pictures: Pictures, each: int, first: int, seed: int) -> Pictures:
    """So many random pictures in each style, none twice; the styles are classes from `first` on."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    parts = order[: each * len(STYLES)].split(each)
    pixels = [style(pictures.pixels[p]) for style, p in zip(STYLES, parts, strict=True)]
    classes = torch.arange(first, first + len(STYLES)).repeat_interleave(each)
    return Pictures(torch.cat(pixels), classes)
