"""Losses of language models."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch
from pydvl_datainf.objectives.tokens import (
    IGNORED,
    Reduction,
    check_reduction,
    check_token_labels,
    labels_in,
    token_losses,
)


class CausalLM:
    r"""Cross entropy of a causal language model, over the tokens of the answer.

    With A the positions of a sample that have a label and lie within its attention mask, the loss
    is

        −(1/|A|) Σ_{t ∈ A} log p(token t | tokens before t)

    or, with reduction="sum", the same without 1/|A|. Tokens labelled -100 (the prompt) and padding
    do not count. Padding may be on either side: where it is on the left, positions are counted from
    the first token of each sample, unless the batch has `position_ids`. So neither the other
    samples of a batch nor the padding change a loss beyond rounding.

    Args:
        reduction: "mean" over the answer tokens of each sample, or their "sum" (the influence of
            an answer then grows with its length).
        labels: the key of the labels in the batch: token ids, aligned with `input_ids`.

    Raises:
        ObjectiveError: if there is no such reduction.
    """

    def __init__(self, reduction: Reduction = "mean", labels: str = "labels"):
        self.reduction: Reduction = check_reduction(reduction)
        self.labels = labels

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each sample.

        Args:
            model: takes `input_ids` (or `inputs_embeds`), `attention_mask` and whatever else the
                batch holds; returns an object with `logits` of shape (B, T, vocabulary).
            batch: a mapping of tensors: the model's inputs, and labels of shape (B, T).

        Returns:
            Losses in nats, shape (B,).

        Raises:
            ObjectiveError: if labels are missing or of another shape or type, or if a sample has
                no answer token.
        """
        tensors, labels = labels_in(batch, self.labels, type(self).__name__)
        inputs: dict[str, Any] = tensors
        tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        check_token_labels(labels, tokens.shape[:2], self.labels)
        mask = inputs.get("attention_mask")
        if mask is not None:
            labels = torch.where(mask.bool(), labels, IGNORED)
        targets = labels[:, 1:]  # the logits at a position are those of the next token
        accepted = _accepted(model)
        if "use_cache" in accepted:
            inputs["use_cache"] = False  # of keys and values, for a generation that does not follow
        if mask is not None and "position_ids" in accepted and not bool(mask[:, 0].all()):
            inputs.setdefault("position_ids", (mask.long().cumsum(1) - 1).clamp_min(0))
        if "logits_to_keep" in accepted:
            # The output layer is a large part of the work, and most of a prompt needs none of it.
            keep = (targets != IGNORED).any(0).nonzero()[:, 0]
            logits = model(**inputs, logits_to_keep=keep).logits
            return token_losses(logits, targets[:, keep], self.reduction, type(self).__name__)
        logits = model(**inputs).logits[:, :-1]
        return token_losses(logits, targets, self.reduction, type(self).__name__)


def _accepted(model: Any) -> frozenset[str]:
    """The names of what the transformers model inside takes; peft hides them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)
