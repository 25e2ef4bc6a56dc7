"""Batches of tokens cut by a budget: texts of like length together, without common padding."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import BatchError, NonFiniteError, ObjectiveError
from pydvl_datainf.objectives.tokens import IGNORED
from pydvl_datainf.vectors import BlockVectors, concatenated

if TYPE_CHECKING:
    from pydvl_datainf.gradients import GradientEngine

Tokens: TypeAlias = Mapping[str, Tensor]

MASK = "attention_mask"
BY_TOKEN = ("input_ids", MASK, "token_type_ids", "position_ids", "special_tokens_mask")
"""Tensors with an entry for each token, where they are of shape (B, T); labels may be, too."""


class ByLengthEngine:
    """Rows of a batch from pieces of at most so many tokens, in the order of the batch.

    The samples are taken by length, longest first, so that memory is needed most at the start.
    Columns at the right end in which every sample of a piece is padding are cut off, which changes
    no row beyond rounding.

    Args:
        engine: computes the rows of a piece.
        max_tokens: the largest number of tokens in a piece, padding included; a sample that is
            longer makes a piece of its own.

    Raises:
        BatchError: if the number is not positive.
    """

    def __init__(self, engine: "GradientEngine", max_tokens: int):
        if type(max_tokens) is not int or max_tokens < 1:
            raise BatchError(f"max_tokens must be a positive number or None, got {max_tokens!r}.")
        self.engine = engine
        self.max_tokens = max_tokens

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses.

        Args:
            batch: a checked mapping with an attention mask.

        Returns:
            For each block the gradients as rows, shape (B, d_l), in the order of the batch.

        Raises:
            BatchError: if the batch has no attention mask of shape (B, T).
            NonFiniteError: if a gradient is not finite; with the position in the batch.
            ObjectiveError: if a sample has no loss; with the positions in the batch.
        """
        order, parts = [], []
        for where, piece in pieces_by_length(batch, self.max_tokens):
            order.append(where)
            parts.append(self._rows(piece, where))
        back = torch.cat(order).argsort()
        return OrderedDict((block, v[back]) for block, v in concatenated(parts).items())

    def _rows(self, piece: Tokens, where: Tensor) -> BlockVectors:
        try:
            return self.engine.rows(piece)
        except NonFiniteError as error:
            sample = int(where[error.sample])
            told = f"Sample {sample} of the batch, computed with others of its length: {error}"
            raise NonFiniteError(told, sample) from error
        except ObjectiveError as error:
            numbers = ", ".join(str(i) for i in where.tolist())
            told = f"{error} (Samples are taken by length; these are {numbers} of their batch.)"
            raise ObjectiveError(told) from error


def pieces_by_length(batch: Batch, max_tokens: int) -> Iterator[tuple[Tensor, Tokens]]:
    """Cuts a batch.

    Args:
        batch: a mapping with an attention mask (B, T).
        max_tokens: the largest number of tokens in a piece, padding included.

    Yields:
        For each piece the positions of its samples in the batch, and the piece.

    Raises:
        BatchError: if the batch has no attention mask of shape (B, T).
    """
    if not isinstance(batch, Mapping) or MASK not in batch or batch[MASK].ndim != 2:
        got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
        raise BatchError(
            f"max_tokens needs batches that are mappings with '{MASK}' of shape (B, T), got {got}. "
            "Use batch_size for other batches."
        )
    lengths = _lengths(batch[MASK])
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        where = order[start : start + max(1, max_tokens // longest)]
        yield where, _trimmed({name: tensor[where] for name, tensor in batch.items()}, longest)
        start += len(where)


def _lengths(mask: Tensor) -> Tensor:
    """For each sample the number of columns up to its last token, (B,)."""
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (positions * mask.bool()).amax(1)


def _trimmed(piece: Tokens, width: int) -> Tokens:
    """Without the columns from `width` on, unless labels count there (those of another text)."""
    shape = piece[MASK].shape
    by_token = {n for n in BY_TOKEN if n in piece and piece[n].shape == shape}
    labels = {n: t for n, t in piece.items() if n not in BY_TOKEN and t.shape == shape}
    by_token |= {n for n, t in labels.items() if bool((t[:, width:] == IGNORED).all())}
    if "labels" in labels.keys() - by_token:
        return piece
    return {n: t[:, :width] if n in by_token else t for n, t in piece.items()}
