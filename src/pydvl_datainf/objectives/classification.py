"""Losses of transformers models that classify texts, images or tokens."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.tokens import (
    IGNORED,
    Reduction,
    check_reduction,
    check_token_labels,
    labels_in,
    padding_last,
    raised,
    token_losses,
    without_padding,
)

Problem: TypeAlias = Literal[
    "single_label_classification", "multi_label_classification", "regression"
]

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


class SequenceClassification:
    """The loss of a transformers sequence or image classifier, for mappings with labels inside.

    The batch goes to the model without its labels. The logits (B, classes) are compared with the
    labels as transformers does, but for each sample by itself:

    - single_label_classification: cross entropy; labels are integers of shape (B,), and -100 has
      no loss (NaN);
    - multi_label_classification: binary cross entropy, mean over the classes; labels are floating
      zeros and ones of shape (B, classes);
    - regression: squared error, mean over the outputs; labels are numbers of shape (B,) or
      (B, outputs).

    Logits in half precision are raised to float32 first. Texts are given to the model as they are:
    most need their padding on the right.

    Args:
        labels: the key of the labels in the batch.
        problem: one of the three; None = what the model's configuration says, and otherwise
            regression for a single output, single_label_classification for integer labels and
            multi_label_classification for floating ones.

    Raises:
        ObjectiveError: if there is no such problem.
    """

    def __init__(self, labels: str = "labels", problem: Problem | None = None):
        self.labels = labels
        self.problem = None if problem is None else _check_problem(problem)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each sample.

        Args:
            model: returns an object with `logits` of shape (B, classes).
            batch: a mapping of tensors: the model's inputs and the labels.

        Returns:
            Losses, shape (B,); cross entropies in nats.

        Raises:
            ObjectiveError: if the batch has no labels, or labels of another shape or type.
        """
        inputs, labels = labels_in(batch, self.labels, type(self).__name__)
        logits = raised(model(**inputs).logits)
        problem = self.problem or _problem_of(model, logits, labels)
        if problem == "single_label_classification":
            return self._cross_entropy(logits, labels)
        targets = self._like(logits, labels)
        if problem == "regression":
            return (logits - targets).square().mean(1)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.ndim != 1 or labels.is_floating_point():
            raise ObjectiveError(
                f"'{self.labels}' must be integers of shape (B,), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}. For several labels or numbers a sample pass "
                'problem="multi_label_classification" or "regression".'
            )
        losses = F.cross_entropy(logits, labels.long(), reduction="none")
        # PyTorch gives 0 for a label that does not count, which would pass for a perfect sample.
        return losses.masked_fill(labels == IGNORED, torch.nan)

    def _like(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Labels (B,) or (B, outputs), in the shape and type of the logits."""
        shaped = labels.unsqueeze(1) if labels.ndim == 1 and logits.shape[1] == 1 else labels
        if shaped.shape != logits.shape:
            raise ObjectiveError(
                f"'{self.labels}' must have a number for each of the {logits.shape[1]} outputs of "
                f"each sample, shape {tuple(logits.shape)}; got {tuple(labels.shape)}."
            )
        return shaped.to(logits.dtype)


def _check_problem(problem: Any) -> str:
    if problem not in PROBLEMS:
        raise ObjectiveError(f"problem must be one of {PROBLEMS} or None, got {problem!r}.")
    return str(problem)


def _problem_of(model: nn.Module, logits: Tensor, labels: Tensor) -> str:
    told: Any = getattr(getattr(model, "config", None), "problem_type", None)
    if told is not None:
        return _check_problem(told)
    if logits.shape[1] == 1:
        return "regression"
    return PROBLEMS[1 if labels.is_floating_point() and labels.ndim == 2 else 0]


class TokenClassification:
    """Cross entropy of a transformers token classifier, over the tokens that have a label.

    Tokens labelled -100 do not count: padding, special tokens, and all but the first token of a
    word. Padding may be on either side: what is on the left is moved behind the text.

    Args:
        reduction: "mean" over the labelled tokens of each sample, or their "sum".
        labels: the key of the labels in the batch.

    Raises:
        ObjectiveError: if there is no such reduction.
    """

    def __init__(self, reduction: Reduction = "mean", labels: str = "labels"):
        self.reduction: Reduction = check_reduction(reduction)
        self.labels = labels

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each sample.

        Args:
            model: returns an object with `logits` of shape (B, T, classes).
            batch: a mapping of tensors: the model's inputs, and labels of shape (B, T).

        Returns:
            Losses in nats, shape (B,).

        Raises:
            ObjectiveError: if labels are missing or of another shape or type, or if a sample has
                none.
        """
        inputs, labels = labels_in(batch, self.labels, type(self).__name__)
        inputs = padding_last(inputs | {self.labels: labels}, inputs.get("attention_mask"))
        labels = inputs.pop(self.labels)
        logits = model(**inputs).logits
        check_token_labels(labels, logits.shape[:2], self.labels)
        labels = without_padding(labels, inputs.get("attention_mask"))
        return token_losses(logits, labels, self.reduction, type(self).__name__)
