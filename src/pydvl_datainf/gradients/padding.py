"""Whether padding changes gradients: a sample in its batch against the same without padding."""

from collections.abc import Iterable, Mapping
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, signature
from pydvl_datainf.gradients.by_length import MASK, Tokens, lengths_of, trimmed
from pydvl_datainf.gradients.checks import Tolerance
from pydvl_datainf.gradients.engines import LossGradientEngine
from pydvl_datainf.terminal import some
from pydvl_datainf.vectors import BlockVectors

IDS = "input_ids"


class PaddingCheckEngine(LossGradientEngine):
    """The rows of another engine, with a warning where padding changes them.

    The other checks see a sample with the padding that its batch gave it, so a model that looks at
    padding passes them: without a mask, through a convolution, by positions counted from padding.
    Of the first batch with padding of each kind, the row of the sample with most of it is compared
    with the row of that sample alone and without padding.

    Args:
        engine: computes the rows.
        model: whose gradients they are.
    """

    def __init__(self, engine: LossGradientEngine, model: nn.Module):
        self.engine = engine
        self.model = model
        self._seen: set[Any] = set()  # kinds of batches, and on which sides the padding was

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes what the other engine does, and warns."""
        rows = self.engine.rows_with_losses(batch)
        if isinstance(batch, Mapping) and (masks := _masks(batch, self.model)):
            left = _padding_behind([mask.flip(1) for mask in masks.values()])
            right = _padding_behind(masks.values())
            i = int((left + right).argmax())
            sides = (bool(left[i]), bool(right[i]))
            kind = (signature(batch), sides)
            if any(sides) and kind not in self._seen:
                self._seen.add(kind)
                one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
                alone = _unpadded(one, {prefix: mask[i : i + 1] for prefix, mask in masks.items()})
                self._compare({block: v[i] for block, v in rows.items()}, alone, i, sides)
        return rows

    def _compare(
        self, padded: Mapping[str, Tensor], alone: Tokens, i: int, sides: tuple[bool, bool]
    ) -> None:
        """Warns if a sample's gradients are others without padding."""
        try:
            rows = self.engine.rows(alone)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever a model may raise on a shorter text
            return
        tolerance = Tolerance.of(self.model, next(self.model.parameters()).device)
        wrong = tolerance.unequal(padded, {block: v[0] for block, v in rows.items()})
        if wrong:
            inner: Any = getattr(self.model, "get_base_model", lambda: self.model)()
            remedy = "Pad on the right. If that warns, too, give" if sides[0] else "Give"
            warn(
                f"{type(inner).__name__} does not ignore padding: without it, sample {i} of a "
                f"batch has other gradients, for {some(sorted(wrong))}. So they change with the "
                f"length of the longest sample of each batch. {remedy} batches of samples of one "
                "length, or with an attention_mask use max_tokens=1.",
                stacklevel=2,
            )


def _masks(named: Tokens, model: nn.Module) -> dict[str, Tensor]:
    """Where the texts of a batch have tokens, (B, T), by the beginning of the texts' names."""
    config: Any = getattr(model, "config", None)
    pad, end = (getattr(config, f"{name}_token_id", None) for name in ("pad", "eos"))
    masks = {}
    for name, ids in named.items():
        if not name.endswith(IDS) or ids.ndim != 2:
            continue
        prefix = name.removesuffix(IDS)
        mask = named.get(prefix + MASK)
        # Without a mask, what follows the last token that is not the model's padding token.
        if mask is None and type(pad) is int and pad != end:
            mask = (ids != pad).int().flip(1).cummax(1).values.flip(1)
        if mask is not None and mask.shape == ids.shape:
            masks[prefix] = mask
    return masks


def _padding_behind(masks: Iterable[Tensor]) -> Tensor:
    """Columns behind the last token of each text, in all texts of each sample, (B,)."""
    counts = [(mask.shape[1] - lengths_of(mask)) * mask.bool().any(1) for mask in masks]
    return torch.stack(counts).sum(0)


def _unpadded(one: Tokens, masks: Mapping[str, Tensor]) -> Tokens:
    """A batch of one without the padding on both sides."""
    added = {prefix + MASK for prefix in masks if prefix + MASK not in one}
    piece = dict(one) | {prefix + MASK: mask for prefix, mask in masks.items()}
    for _ in range(2):  # the right end, then, backwards, the left one
        widths = {prefix: int(lengths_of(piece[prefix + MASK])) for prefix in masks}
        cut = trimmed(piece, widths)
        piece = {name: t.flip(1) if t.ndim > 1 else t for name, t in cut.items()}
    return {name: t for name, t in piece.items() if name not in added}
