"""Batches of tokens cut by a budget: texts of like length together, without common padding."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import BatchError, NonFiniteError, ObjectiveError
from pydvl_datainf.gradients.engines import GradientEngine, LossGradientEngine
from pydvl_datainf.objectives.tokens import IGNORED, has_tokens
from pydvl_datainf.vectors import BlockVectors, concatenated

Tokens: TypeAlias = Mapping[str, Tensor]
Engine = TypeVar("Engine", bound=GradientEngine)

MASK = "attention_mask"
DECODER = "decoder_"


class ByLengthEngine:
    """Rows of a batch from pieces of at most so many tokens, in the order of the batch.

    The samples are taken by length, longest first, so that memory is needed most at the start.
    Columns at the right end in which every sample of a piece is padding are cut off, which changes
    no row beyond rounding where the model ignores padding.

    Args:
        engine: computes the rows of a piece.
        max_tokens: the largest number of tokens in a piece, padding included; a sample that is
            longer makes a piece of its own.

    Raises:
        BatchError: if the number is not positive.
    """

    def __init__(self, engine: GradientEngine, max_tokens: int):
        if type(max_tokens) is not int or max_tokens < 1:
            raise BatchError(f"max_tokens must be a positive number or None, got {max_tokens!r}.")
        self.engine = engine
        self.max_tokens = max_tokens

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses.

        Args:
            batch: a checked mapping with attention masks.

        Returns:
            For each block the gradients as rows, shape (B, d_l), in the order of the batch.

        Raises:
            BatchError: if the batch has no attention mask of shape (B, T).
            NonFiniteError: if a gradient is not finite; with the position in the batch.
            ObjectiveError: if a sample has no loss; with the positions in the batch.
        """
        return self._joined(batch, self.engine.rows)

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes the same, and beside them, under `LOSS`, the losses, (B, 1)."""
        return self._joined(batch, cast(LossGradientEngine, self.engine).rows_with_losses)

    def _joined(self, batch: Batch, compute: Callable[[Batch], BlockVectors]) -> BlockVectors:
        order, parts = [], []
        for where, piece in pieces_by_length(batch, self.max_tokens):
            order.append(where)
            parts.append(computed_of_piece(compute, piece, where))
        back = torch.cat(order).argsort()
        return OrderedDict((block, v[back]) for block, v in concatenated(parts).items())


def computed_of_piece(
    compute: Callable[[Batch], BlockVectors], piece: Tokens, where: Tensor
) -> BlockVectors:
    """What is computed of a piece; errors name the samples by their place in the batch.

    Args:
        compute: computes rows.
        piece: of a batch.
        where: its samples are in the batch.

    Returns:
        What was computed.

    Raises:
        NonFiniteError: if a gradient is not finite; with the position in the batch.
        ObjectiveError: if a sample has no loss; with the positions in the batch.
    """
    try:
        return compute(piece)
    except NonFiniteError as error:
        sample = int(where[error.sample])
        told = f"Sample {sample} of the batch, computed with others of its length: {error}"
        raise NonFiniteError(told, sample) from error
    except ObjectiveError as error:
        numbers = ", ".join(str(i) for i in where.tolist())
        told = f"{error} (Samples are taken by length; these are {numbers} of their batch.)"
        raise ObjectiveError(told) from error


def by_length(engine: Engine, max_tokens: int | None) -> "Engine | ByLengthEngine":
    """An engine that takes texts by length where there is a budget of tokens, or itself."""
    return engine if max_tokens is None else ByLengthEngine(engine, max_tokens)


def pieces_by_length(batch: Batch, max_tokens: int) -> Iterator[tuple[Tensor, Tokens]]:
    """Cuts a batch.

    Args:
        batch: a mapping with one attention mask (B, T) or several: those of an encoder and a
            decoder, or of chosen and rejected answers, have names that end alike.
        max_tokens: the largest number of tokens in a piece, padding included.

    Yields:
        For each piece the positions of its samples in the batch, and the piece.

    Raises:
        BatchError: if the batch has no attention mask of shape (B, T).
    """
    named = batch.items() if isinstance(batch, Mapping) else ()
    masks = {n.removesuffix(MASK): t for n, t in named if n.endswith(MASK) and t.ndim == 2}
    if not masks or not isinstance(batch, Mapping):
        got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
        raise BatchError(
            f"max_tokens needs batches that are mappings with '{MASK}' of shape (B, T), got {got}. "
            "Use batch_size for other batches."
        )
    lengths = torch.stack([lengths_of(mask) for mask in masks.values()])
    order = lengths.sum(0).argsort(descending=True, stable=True)
    while len(order):
        # Padded to the longest on each side, as many samples as fit.
        tokens = lengths[:, order].cummax(1).values.sum(0) * _numbers(len(order), order)
        where = order[: max(1, int((tokens <= max_tokens).sum()))]
        widths = dict(zip(masks, lengths[:, where].amax(1).tolist(), strict=True))
        yield where, trimmed({name: tensor[where] for name, tensor in batch.items()}, widths)
        order = order[len(where) :]


def lengths_of(mask: Tensor) -> Tensor:
    """The extents of texts.

    Args:
        mask: (B, T), zero at padding.

    Returns:
        For each sample the number of columns up to its last token, (B,), at least 1.
    """
    return (_numbers(mask.shape[1], mask) * mask.bool()).amax(1).clamp_min(1)


def _numbers(count: int, like: Tensor) -> Tensor:
    return torch.arange(1, count + 1, device=like.device)


def trimmed(piece: Tokens, widths: Mapping[str, int]) -> Tokens:
    """Without the columns from a width on, in all that has the shape of tokens.

    Where labels count there nothing is cut: they may be those of classes, as many as tokens.

    Args:
        piece: some samples.
        widths: for each prefix of names, that of one text of each sample, the columns to keep.

    Returns:
        The same samples.
    """
    result = dict(piece)
    for prefix, width in widths.items():
        shape = piece[prefix + MASK].shape
        own = {
            name: tensor[:, :width]
            for name, tensor in piece.items()
            if has_tokens(name, tensor, shape) and _prefix_of(name, piece, widths) == prefix
        }
        labels = (piece[name][:, width:] for name in own if name.endswith("labels"))
        if all(bool((beyond == IGNORED).all()) for beyond in labels):
            result |= own
    return result


def _prefix_of(name: str, piece: Tokens, prefixes: Iterable[str]) -> str | None:
    """To which text of a sample a tensor belongs; the labels of a translation, to the decoder."""
    if name == "labels" and any(other.startswith(DECODER) for other in piece):
        return DECODER if DECODER in prefixes else None
    return max((p for p in prefixes if name.startswith(p)), key=len, default=None)
