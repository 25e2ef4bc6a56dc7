"""Losses of language models."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch
from pydvl_datainf.devices import devices_of
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.tokens import (
    IGNORED,
    Reduction,
    check_reduction,
    check_token_labels,
    labels_in,
    padding_last,
    token_losses,
    without_padding,
)


class CausalLM:
    r"""Cross entropy of a causal language model, over the tokens of the answer.

    With A the positions of a sample that have a label and lie within its attention mask, its first
    token excepted, the loss is

        −(1/|A|) Σ_{t ∈ A} log p(token t | tokens before t)

    or, with reduction="sum", the same without 1/|A|. Tokens labelled -100 (the prompt) and padding
    do not count. Padding may be on either side: what is on the left is moved behind the text, with
    every tensor of shape (B, T, ...) that is not named as images, patches, audio or features. No
    token then sees padding, unless the model itself looks ahead or counts how long the longest text
    is.

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
        accepted = _accepted(model)
        check_token_labels(labels, _shape_of_tokens(tensors), self.labels)
        mask = tensors.get("attention_mask")
        tensors[self.labels] = without_padding(labels, mask)
        inputs: dict[str, Any] = padding_last(tensors, mask)
        labels = inputs.pop(self.labels)
        targets = labels[:, 1:]  # the logits at a position are those of the next token
        if "use_cache" in accepted:
            inputs["use_cache"] = False  # of keys and values, for a generation that does not follow
        if "logits_to_keep" in accepted:
            # The output layer is a large part of the work, and most of a prompt needs none of it.
            keep = (targets != IGNORED).any(0).nonzero()[:, 0]
            if len(devices_of(model)) > 1:  # the positions would not be where the output layer is
                first = int(keep[0]) if len(keep) else 0
                logits = model(**inputs, logits_to_keep=labels.shape[1] - first).logits[:, :-1]
                name = type(self).__name__
                return token_losses(logits, targets[:, first:], self.reduction, name)
            logits = model(**inputs, logits_to_keep=keep).logits
            return token_losses(logits, targets[:, keep], self.reduction, type(self).__name__)
        # Tuned prompts, if any, stand before the first token.
        logits = model(**inputs).logits[:, -labels.shape[1] : -1]
        return token_losses(logits, targets, self.reduction, type(self).__name__)


class Seq2SeqLM:
    r"""Cross entropy of an encoder-decoder, over the tokens of the target.

    With A the positions of a sample's target that have a label, the loss is

        −(1/|A|) Σ_{t ∈ A} log p(target t | target before t, source)

    or, with reduction="sum", the same without 1/|A|. Tokens labelled -100 do not count. The
    decoder's input is the target moved by one, unless the batch has `decoder_input_ids`. What
    the masks of source and target leave out on the left is moved behind the text.

    Args:
        reduction: "mean" over the tokens of each sample's target, or their "sum".
        labels: the key of the target in the batch.

    Raises:
        ObjectiveError: if there is no such reduction.
    """

    def __init__(self, reduction: Reduction = "mean", labels: str = "labels"):
        self.reduction: Reduction = check_reduction(reduction)
        self.labels = labels

    def losses(self, model: Any, batch: Batch) -> Tensor:
        """Computes the loss of each sample.

        Args:
            model: takes `input_ids`, `attention_mask`, `decoder_input_ids` and whatever else the
                batch holds; returns an object with `logits` of shape (B, T, vocabulary).
            batch: a mapping of tensors: the model's inputs, and labels of shape (B, T).

        Returns:
            Losses in nats, shape (B,).

        Raises:
            ObjectiveError: if labels are missing, of another shape or type, or all -100, or if the
                model does not tell how they become the decoder's input.
        """
        tensors, labels = labels_in(batch, self.labels, type(self).__name__)
        target = {n: tensors.pop(n) for n in list(tensors) if n.startswith("decoder_")}
        mask = target.get("decoder_attention_mask")
        inputs: dict[str, Any] = padding_last(tensors, tensors.get("attention_mask"))
        inputs |= padding_last({**target, self.labels: labels}, mask)
        labels = inputs.pop(self.labels)
        if "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = self._moved(model, labels)
        check_token_labels(labels, inputs["decoder_input_ids"].shape, self.labels)
        labels = without_padding(labels, inputs.get("decoder_attention_mask"))
        if "use_cache" in _accepted(model):
            inputs["use_cache"] = False
        return token_losses(model(**inputs).logits, labels, self.reduction, type(self).__name__)

    def _moved(self, model: Any, labels: Tensor) -> Tensor:
        """What the decoder is given: the target moved by one, as in the model's own loss."""
        if labels.ndim != 2 or labels.is_floating_point():
            raise ObjectiveError(
                f"'{self.labels}' must be integers of shape (B, T), one for each token of the "
                f"target; got {labels.dtype} of shape {tuple(labels.shape)}."
            )
        move = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if move is not None:
            moved: Tensor = move(labels=labels)
            return moved
        config: Any = getattr(model, "config", None)
        start, pad = (getattr(config, f"{n}_token_id", None) for n in ("decoder_start", "pad"))
        if start is None or pad is None:
            raise ObjectiveError(
                f"{type(self).__name__}: a {type(model).__name__} does not tell what its decoder "
                "is given: set decoder_start_token_id and pad_token_id in its config, or put "
                "'decoder_input_ids' into the batch."
            )
        begun = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
        return begun.masked_fill(begun == IGNORED, pad)


def _shape_of_tokens(inputs: dict[str, Any]) -> torch.Size:
    """(B, T)."""
    for key in ("input_ids", "inputs_embeds"):
        if key in inputs:
            shape: torch.Size = inputs[key].shape[:2]
            return shape
    raise ObjectiveError(
        f"CausalLM needs a batch with 'input_ids' or 'inputs_embeds', got {sorted(inputs)}."
    )


def _accepted(model: Any) -> frozenset[str]:
    """The names of what the transformers model inside takes; peft hides them."""
    # With tuned prompts peft drops positions, and outputs are shifted by the prompt.
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return frozenset()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)
