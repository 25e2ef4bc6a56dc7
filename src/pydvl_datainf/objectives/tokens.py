"""Losses of tokens, reduced to one loss per sample; tokens labelled -100 do not count."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.ignored import IGNORED as IGNORED

Reduction: TypeAlias = Literal["mean", "sum"]


def check_reduction(reduction: Any) -> Reduction:
    """Checks how the losses of a sample's tokens become one.

    Args:
        reduction: "mean" or "sum".

    Returns:
        The reduction.

    Raises:
        ObjectiveError: if it is something else.
    """
    if reduction not in ("mean", "sum"):
        raise ObjectiveError(f'reduction must be "mean" or "sum", got {reduction!r}.')
    checked: Reduction = reduction
    return checked


def labels_in(batch: Batch, key: str, objective: str) -> tuple[dict[str, Tensor], Tensor]:
    """Parts a batch into what the model is given and the labels.

    Args:
        batch: a mapping of tensors.
        key: that of the labels.
        objective: whose batch it is, for messages.

    Returns:
        The inputs and the labels.

    Raises:
        ObjectiveError: if the batch is an (x, y) pair or has no labels.
    """
    if not isinstance(batch, Mapping) or key not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
        raise ObjectiveError(f"{objective} needs a mapping with the key '{key}', got {got}.")
    return {name: tensor for name, tensor in batch.items() if name != key}, batch[key]


def check_token_labels(labels: Tensor, positions: torch.Size, key: str) -> None:
    """Checks that there is one integer label for each token.

    Args:
        labels: as they came.
        positions: (B, T) of the tokens.
        key: that of the labels.

    Raises:
        ObjectiveError: if they are of another shape or type.
    """
    if labels.shape != positions or labels.is_floating_point():
        raise ObjectiveError(
            f"'{key}' must be integers of shape {tuple(positions)}, one for each token, with "
            f"{IGNORED} where none counts; got {labels.dtype} of shape {tuple(labels.shape)}."
        )


def without_padding(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Labels of which those of padding do not count.

    Args:
        labels: integers (B, T).
        mask: (B, T), zero at padding, of any dtype; None = there is no padding.

    Returns:
        Labels, (B, T).

    Raises:
        ObjectiveError: if the mask is of another shape.
    """
    if mask is None:
        return labels
    if mask.shape != labels.shape:
        raise ObjectiveError(
            f"'attention_mask' must be of shape {tuple(labels.shape)}, one for each token, got "
            f"{tuple(mask.shape)}. For other masks write an objective of your own."
        )
    return torch.where(mask.bool(), labels, IGNORED)


OTHERS = ("pixel", "image", "patch", "video", "frame", "audio", "speech", "feature")
"""In names of tensors whose second dimension is not that of tokens, even if it is as long."""


def has_tokens(name: str, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor has an entry for each token, by its shape and name.

    Args:
        name: in the batch.
        tensor: of that name.
        shape: of the tokens, (B, T).

    Returns:
        Whether it leads with (B, T), and is not named as something else.
    """
    return tensor.shape[:2] == shape and not any(part in name for part in OTHERS)


def padding_last(tensors: Mapping[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
    """Moves padding before a text behind it, with all that has an entry for each token.

    A model that counts positions from the first column, from another number or in three
    dimensions, or that reads from the left without a mask, then sees each text as it is without
    padding. What all texts have of it is cut off.

    Args:
        tensors: those with an entry for each token are moved.
        mask: (B, T), zero at padding, of any dtype; None = there is no padding.

    Returns:
        All tensors, with the first token of each text in column 0.
    """
    if mask is None or mask.ndim != 2:
        return dict(tensors)
    first = mask.bool().int().argmax(1, keepdim=True)
    if not bool(first.any()):
        return dict(tensors)
    rows, columns = (torch.arange(size, device=mask.device) for size in mask.shape)
    kept = columns[: len(columns) - int(first.min())]
    moved = rows[:, None], (kept + first) % len(columns)
    return {n: t[moved] if has_tokens(n, t, mask.shape) else t for n, t in tensors.items()}


def token_losses(logits: Tensor, labels: Tensor, reduction: Reduction, objective: str) -> Tensor:
    """Cross entropy of the labelled tokens of each sample.

    Args:
        logits: (B, T, classes), in any precision; half precision is raised to float32.
        labels: integers (B, T), -100 where none counts.
        reduction: "mean" divides by the number of labelled tokens of the sample, "sum" does not.
        objective: whose losses they are, for messages.

    Returns:
        Losses in nats, shape (B,).

    Raises:
        ObjectiveError: if a sample has no labelled token, or the logits are not those of the
            labels.
    """
    if logits.shape[:2] != labels.shape:
        raise ObjectiveError(
            f"{objective}: the model's logits must be of shape (B, T, classes), the first two "
            f"{tuple(labels.shape)}; got {tuple(logits.shape)}."
        )
    counted = labels != IGNORED
    counts = counted.sum(1)
    if not bool(counts.all()):
        sample = int((counts == 0).nonzero()[0])
        raise ObjectiveError(
            f"{objective}: sample {sample} of a batch has no labelled token, so it has no loss. "
            "Leave it out, or cut long texts elsewhere so that some of the answer remains."
        )
    # Only rows of logits that count are raised and exponentiated: most of a prompt's do not.
    losses = F.cross_entropy(raised(logits[counted]), labels[counted].long(), reduction="none")
    sample_of = counted.nonzero()[:, 0]
    sums = losses.new_zeros(len(labels)).index_add(0, sample_of, losses)
    return sums / counts if reduction == "mean" else sums


def raised(logits: Tensor) -> Tensor:
    """Logits in half precision as float32, others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
