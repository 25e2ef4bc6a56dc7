"""From a model and a batch to one loss per sample: the seam through which every task enters."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

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


class OutputLoss:
    """A pyDVL-style `loss(outputs, y)` as an objective for (x, y) batches.

    Each sample is shown to the loss as a batch of one, as pyDVL does, so that a loss which takes
    the mean over a batch does not bring in the factor 1/B. The loss is mapped over the samples with
    `torch.vmap`, or called sample by sample where vmap refuses it.

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
                loss is not one number a sample.
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
        return self._mapped(outputs, targets) if self._vmappable else self._looped(outputs, targets)

    def _mapped(self, outputs: Any, targets: Tensor) -> Tensor:
        try:
            return torch.vmap(self._one)(outputs, targets)
        except ObjectiveError:
            raise
        except (RuntimeError, ValueError):
            self._vmappable = False
            return self._looped(outputs, targets)

    def _looped(self, outputs: Any, targets: Tensor) -> Tensor:
        samples = range(targets.shape[0])
        return torch.stack(
            [self._one(*pytree.tree_map(lambda t, i=i: t[i], (outputs, targets))) for i in samples]
        )

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


class SequenceClassification:
    """Cross entropy of a transformers sequence classifier, for mappings with labels inside.

    The batch goes to the model without its labels; the logits (B, classes) are compared with the
    labels, integers of shape (B,). Logits in half precision are raised to float32 first.

    Args:
        labels: the key of the labels in the batch.
    """

    def __init__(self, labels: str = "labels"):
        self.labels = labels

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the cross entropy of each sample.

        Args:
            model: returns an object with `logits` of shape (B, classes).
            batch: a mapping of tensors: the model's inputs and the labels.

        Returns:
            Losses in nats, shape (B,).

        Raises:
            ObjectiveError: if the batch has no labels, or labels of another shape or type.
        """
        if not isinstance(batch, Mapping) or self.labels not in batch:
            got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
            raise ObjectiveError(
                f"SequenceClassification needs a mapping with the key '{self.labels}', got {got}."
            )
        labels = batch[self.labels]
        if labels.ndim != 1 or labels.is_floating_point():
            raise ObjectiveError(
                f"'{self.labels}' must be integers of shape (B,), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}. For several labels or numbers a sample write an objective."
            )
        inputs = {name: tensor for name, tensor in batch.items() if name != self.labels}
        logits = model(**inputs).logits
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return F.cross_entropy(logits, labels, reduction="none")


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
