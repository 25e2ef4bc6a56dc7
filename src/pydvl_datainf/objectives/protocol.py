"""The seam through which every task enters: from a model and a batch to one loss per sample."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pydvl_datainf.batches import Batch, batch_length
from pydvl_datainf.errors import ObjectiveError


@runtime_checkable
class Objective(Protocol):
    """What is differentiated: one loss for each sample of a batch.

    Write a class with this one method to use any model and any batch, for instance a model that
    takes several inputs or a loss that masks tokens.
    """

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each sample from that sample alone.

        Args:
            model: the model, to be called as `model(...)`.
            batch: an (x, y) pair or a mapping of tensors with B samples along the first dimension.

        Returns:
            Losses, shape (B,), each depending on its own sample only and not divided by B.
        """
        ...


def check_losses(losses: Any, batch: Batch) -> Tensor:
    """Checks that an objective gave one loss per sample, with a graph behind it.

    Args:
        losses: what `objective.losses` returned for `batch`.
        batch: B samples.

    Returns:
        The losses, shape (B,).

    Raises:
        ObjectiveError: if the shape is another.
    """
    length = batch_length(batch)
    if not isinstance(losses, Tensor) or losses.shape != (length,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ObjectiveError(
            f"losses(model, batch) must return one loss per sample, shape ({length},), got {got}. "
            'Use reduction="none" and reduce over everything but the samples.'
        )
    return losses
