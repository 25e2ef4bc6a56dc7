"""A pyDVL-style loss of outputs and targets as an objective."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.protocol import Objective
from pydvl_datainf.objectives.weights import check_weights_kept


class OutputLoss:
    """A pyDVL-style `loss(outputs, y)` as an objective for (x, y) batches.

    Each sample is shown to the loss as a batch of one, as pyDVL does, so that a loss which takes
    the mean over a batch does not bring in the factor 1/B. For the same reason a mean that divides
    by the weights of its samples would lose them: those of torch with a weight, such as
    `nn.CrossEntropyLoss(weight=w)`, are refused, and `reduction="sum"` counts w_y times the loss.
    The loss is mapped over the samples with `torch.vmap`, or called sample by sample where vmap
    refuses it.

    Args:
        loss: takes the model's outputs (1, ...) and a target (1, ...), returns one number.
    """

    def __init__(self, loss: Callable[[Any, Tensor], Tensor]):
        self.loss = loss
        self._vmappable = True

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes `loss(model(x)[i], y[i])` for each sample i.

        Args:
            model: called with x alone.
            batch: an (x, y) pair of tensors.

        Returns:
            Losses, shape (B,).

        Raises:
            ObjectiveError: if the batch is a mapping, outputs do not lead with the samples, or the
                loss is not one number a sample or divides by weights.
            OutOfMemoryError: if the device has too little memory.
        """
        if isinstance(batch, Mapping):
            raise ObjectiveError(
                "A loss(outputs, y) needs (x, y) batches, but the batch is a mapping with the keys "
                f"{sorted(batch)}. Pass an objective in place of the loss: SequenceClassification"
                "() for transformers classifiers, or a class of your own with losses(model, batch)."
            )
        x, y = batch
        # Samples as batches of one: leaves of shape (B, 1, ...).
        outputs, targets = pytree.tree_map(lambda t: _leading(t, len(y)), (model(x), y))
        check_weights_kept(self.loss, *pytree.tree_map(lambda t: t[0], (outputs, targets)))
        if self._vmappable:
            try:
                return torch.vmap(self._one)(outputs, targets)
            except (ObjectiveError, torch.cuda.OutOfMemoryError):
                raise
            except (RuntimeError, ValueError):
                self._vmappable = False
        samples = (pytree.tree_map(lambda t, i=i: t[i], (outputs, targets)) for i in range(len(y)))
        return torch.stack([self._one(*sample) for sample in samples])

    def _one(self, output: Any, target: Tensor) -> Tensor:
        loss = self.loss(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ObjectiveError(
                f"The loss must be one number for each sample; for one sample it returned {shape}. "
                'Reduce it inside the loss, for instance with reduction="mean" or "sum".'
            )
        return loss.reshape(())


def _leading(output: Any, length: int) -> Tensor:
    """(B, ...) as (B, 1, ...)."""
    if not isinstance(output, Tensor) or output.shape[:1] != (length,):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ObjectiveError(
            f"The model's outputs must be tensors with the {length} samples along their first "
            f"dimension, got {got}. For other outputs pass an objective: a class with "
            "losses(model, batch)."
        )
    return output.unsqueeze(1)


def as_objective(loss: Any) -> Objective:
    """Wraps a pyDVL-style `loss(outputs, y)`; an objective is returned as it is.

    Args:
        loss: an object with a method `losses`, or a callable.

    Returns:
        An objective.

    Raises:
        ObjectiveError: if it is neither, or an objective's class in place of an instance.
    """
    if isinstance(loss, type):
        if not issubclass(loss, nn.Module) and not hasattr(loss, "losses"):
            raise ObjectiveError(f"{loss.__name__} is a class; pass an instance or a function.")
        raise ObjectiveError(f"{loss.__name__} is a class; pass an instance: {loss.__name__}().")
    if isinstance(loss, Objective):
        return loss
    if not callable(loss):
        raise ObjectiveError(
            f"A loss is a callable loss(outputs, y) or has a method losses(model, batch); "
            f"got a {type(loss).__name__}."
        )
    return OutputLoss(loss)
