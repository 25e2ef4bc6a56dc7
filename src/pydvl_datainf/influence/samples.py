"""The samples that a caller asks about: checked, on the device, and as rows."""

from collections.abc import Mapping

import torch
from pydvl.influence.types import InfluenceMode, UnsupportedInfluenceModeException
from torch import Tensor
from tqdm.auto import tqdm

from pydvl_datainf.batches import Batch, batch_to, split_batch
from pydvl_datainf.errors import BatchError
from pydvl_datainf.gradients import GradientEngine
from pydvl_datainf.influence.settings import Inputs
from pydvl_datainf.objectives import ImageLayout
from pydvl_datainf.vectors import BlockVectors, concatenated


def given_batch(x: Inputs, y: Tensor | None, images: ImageLayout, device: torch.device) -> Batch:
    """What a caller gave, checked, on the device.

    Args:
        x: inputs, or a mapping that carries its labels.
        y: targets; None with a mapping.
        images: how the images of a batch follow from its tokens.
        device: where to.

    Returns:
        The batch, whose tensors lead with the samples.

    Raises:
        BatchError: if it is no batch.
    """
    if isinstance(x, Mapping) and y is not None:
        raise BatchError(
            "A mapping carries its own labels, so y must be None. Put the labels into the "
            "mapping, under the key that the objective reads."
        )
    if not isinstance(x, Mapping) and y is None:
        raise BatchError("Inputs x came without labels y. Pass both (a mapping carries its own).")
    return batch_to(images.by_sample(x if y is None else (x, y)), device)


def rows_of(
    batch: Batch, engine: GradientEngine, batch_size: int | None, *, progress: bool
) -> BlockVectors:
    """The rows of a batch.

    Args:
        batch: of B samples.
        engine: computes rows.
        batch_size: the largest number of samples that it is given at once; None = any.
        progress: whether to show a progress bar.

    Returns:
        For each block rows, (B, d_l).
    """
    pieces = list(split_batch(batch, batch_size))
    disable = not progress or len(pieces) == 1
    bar = tqdm(pieces, "gradients", leave=False, disable=disable)
    return concatenated([engine.rows(piece) for piece in bar])


def checked_mode(mode: InfluenceMode | str) -> InfluenceMode:
    """The mode by its name; pyDVL's own error where there is none."""
    try:
        return InfluenceMode(mode)
    except ValueError:
        raise UnsupportedInfluenceModeException(mode) from None
