"""Checks of losses and rows, and by how much rounding lets two computations of one differ."""

import pickle
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, batch_named
from pydvl_datainf.errors import ModelError, NonFiniteError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two computations of one number may differ: by rounding, far below any fault.

    A float64 model gets no narrower bounds, since some models compute parts in float32.
    """

    loss: float  # relative; to the largest of the batch where the same batch is computed again
    gradient: float  # relative to the gradient's root mean square
    noise: float  # relative to that of the largest gradient

    @classmethod
    def of(cls, model: nn.Module, device: torch.device) -> "Tolerance":
        """That of the coarsest arithmetic in the model."""
        dtypes = {p.dtype for p in model.parameters()}
        kinds = {device.type, *(p.device.type for p in model.parameters())}
        dtypes |= {torch.get_autocast_dtype(k) for k in kinds if torch.is_autocast_enabled(k)}
        found = [_TOLERANCES[d] for d in dtypes & _TOLERANCES.keys()]
        if torch.float32 in dtypes and "cuda" in kinds and _rounds_to_tf32():
            found.append(_TF32)
        return max(found, key=lambda t: t.loss)

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether the losses of one batch, computed twice, agree."""
        largest = float(a.detach().abs().max())
        return torch.allclose(a.detach(), b.detach(), rtol=self.loss, atol=self.loss * largest)

    def close(self, a: Tensor, b: Tensor) -> bool:
        """Whether a sample's loss agrees between two batches; it may be the rest of large terms."""
        return torch.allclose(a.detach(), b.detach(), rtol=self.loss, atol=self.loss)

    def unequal(self, rows: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> list[str]:
        """Names in both whose gradients differ by more than rounding, in root mean square."""
        noise = self.noise * max((_rms(g) for g in truth.values()), default=0.0)
        return [
            name
            for name in rows.keys() & truth.keys()
            if _rms(rows[name] - truth[name]) > self.gradient * _rms(truth[name]) + noise
        ]


_TF32 = Tolerance(5e-3, 5e-2, 1e-3)
_BFLOAT16 = Tolerance(2e-2, 1e-1, torch.finfo(torch.bfloat16).eps)
_TOLERANCES = {
    torch.float64: Tolerance(1e-6, 1e-3, 16 * torch.finfo(torch.float64).eps),
    torch.float32: Tolerance(1e-4, 1e-3, 16 * torch.finfo(torch.float32).eps),
    torch.float16: Tolerance(2e-2, 1e-1, 16 * torch.finfo(torch.float16).eps),
    torch.bfloat16: _BFLOAT16,
    # Quantised weights, which are multiplied in half precision.
    torch.int8: _BFLOAT16,
    torch.uint8: _BFLOAT16,
}


def _rounds_to_tf32() -> bool:
    """Whether CUDA may round the factors of float32 products or convolutions to ten bits."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        return bool(matmul.allow_tf32 or cudnn.allow_tf32)
    # Not allow_tf32, which raises where a caller set these.
    return "tf32" in (matmul.fp32_precision, cudnn.conv.fp32_precision)


def check_steady(losses: Tensor, again: Tensor, tolerance: Tolerance) -> None:
    """Checks that nothing in a forward pass is random.

    Args:
        losses: of a batch.
        again: the losses of the same batch, computed again.
        tolerance: of the model.

    Raises:
        ModelError: if any differs.
    """
    if not tolerance.same(losses, again):
        raise ModelError(
            "Two forward passes over one batch gave different losses: something in the model "
            "or the objective is random. Call model.eval(), switch functional dropout off, and "
            "draw noise from a generator that is seeded for each sample."
        )


PASSES_OF_CHANCE = 64
"""Forward passes over one batch where random numbers are drawn. A layer that is left out in one
pass of 20 for all samples together (LayerDrop) stays unseen in so many with a chance of 4%."""


def random_states(devices: Iterable[torch.device]) -> list[bytes]:
    """The states of the global generators that a forward pass may draw from.

    Args:
        devices: of the model.

    Returns:
        Those of torch on the CPU and on cards, of NumPy and of Python; equal where none was drawn
        from.
    """
    cards = [torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"]
    drawn = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cards)]
    others = np.random.get_state(), random.getstate()  # noqa: NPY002 - which models draw from
    return [*drawn, *map(pickle.dumps, others)]


def check_not_by_chance(losses: Callable[[], Tensor], tolerance: Tolerance) -> None:
    """Checks that the random numbers that a forward pass draws change nothing.

    Some models draw them and do not use them. In others, as with LayerDrop and stochastic depth in
    training mode, two passes are often the same.

    Args:
        losses: computes those of one batch.
        tolerance: of the model.

    Raises:
        ModelError: if any pass gives others.
    """
    first = losses().detach()
    for _ in range(PASSES_OF_CHANCE - 1):
        check_steady(first, losses().detach(), tolerance)


def check_independent(
    together: Tensor, apart: Tensor, tolerance: Tolerance, where: str, *, first: int = 0
) -> None:
    """Checks that losses in a batch do not depend on the other samples in it.

    Args:
        together: losses of some samples, computed in one batch, (k,).
        apart: the same samples' losses, computed in smaller batches, (k,).
        tolerance: of the model.
        where: the smaller batches were, for the message.
        first: the position of the first of them in the batch.

    Raises:
        ModelError: if any differs.
    """
    for i, (a, b) in enumerate(zip(together, apart, strict=True)):
        if not tolerance.close(a, b):
            raise ModelError(
                f"The loss of sample {first + i} is {a:.6g} in its batch and {b:.6g} {where}: it "
                "depends on other samples, so it has no gradient of its own. Statistics over the "
                "batch, experts that take so many tokens of a batch and no more, or a loss that "
                "divides by the batch size do this. batch_size=1 computes each sample by itself."
            )


def check_finite_losses(losses: Tensor, batch: Batch) -> None:
    """Checks the losses of a batch.

    Args:
        losses: one per sample, (B,).
        batch: whose losses they are.

    Raises:
        NonFiniteError: if any is infinite or NaN; names the first.
    """
    finite = losses.detach().isfinite()
    if bool(finite.all()):
        return
    i = int((~finite).nonzero()[0])
    raise NonFiniteError(
        f"The loss of sample {i} of a batch is {losses[i]:.6g}. Look for NaN in the data, for "
        "labels that the loss ignores, such as -100, and for overflow in a float16 model."
        + (_OF_PADDING if _has_padding(batch, i) else ""),
        i,
    )


_OF_PADDING = (
    " The sample has padding, at which the attention of some models overflows, in float64 too: try "
    'float32, another attn_implementation ("sdpa" or "eager"), or batches without padding.'
)


def _has_padding(batch: Batch, i: int) -> bool:
    named = batch_named(batch).items()
    masks = (mask[i] for name, mask in named if name.endswith("attention_mask"))
    return not all(bool(mask.all()) for mask in masks)


def check_finite_rows(rows: Mapping[str, Tensor]) -> None:
    """Checks the gradients of a batch.

    Args:
        rows: for each block gradients as rows, (B, d_l).

    Raises:
        NonFiniteError: if any entry is infinite or NaN; names a sample and the block.
    """
    # A sum is not finite where an entry is not, and is far faster than looking at each.
    if bool(torch.stack([v.sum() for v in rows.values()]).isfinite().all()):
        return
    block = next((block for block, v in rows.items() if not v.isfinite().all()), None)
    if block is None:  # the sum itself overflowed
        return
    i = int((~rows[block].isfinite().all(dim=1)).nonzero()[0])
    raise NonFiniteError(
        f"The gradient of sample {i} of a batch is not finite in block '{block}'. Look for NaN in "
        "the data, for overflow in a float16 model, and for functions such as sqrt at 0.",
        i,
    )


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0
