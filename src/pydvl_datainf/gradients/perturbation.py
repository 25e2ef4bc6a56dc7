"""How influence changes with the training input: the derivative of each influence by x."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.errors import BatchError, ModelError
from pydvl_datainf.gradients.supported import (
    check_mode,
    check_model,
    differentiating,
    selected_parameters,
)
from pydvl_datainf.objectives import Objective, check_losses
from pydvl_datainf.vectors import BlockVectors


def perturbation_rows(
    model: nn.Module,
    objective: Objective,
    blocks: Blocks,
    factors: Mapping[str, Tensor],
    batch: Batch,
) -> BlockVectors:
    """Computes ∇_x ⟨f_i, ∇_θ ℓ_j⟩ for each factor i and training sample j.

    Since ℓ_j depends on x_j alone, one backward pass through the gradient of the summed losses
    gives the answer for all samples at once; the matrix ∇_x ∇_θ ℓ is never formed.

    Args:
        model: left exactly as it was.
        objective: gives one loss per sample.
        blocks: the parameters that are differentiated.
        factors: for each block wanted, vectors f as rows, shape (m, d_l).
        batch: an (x, y) pair of B samples, x of a floating dtype.

    Returns:
        For each of these blocks a tensor of shape (m, B, *x.shape[1:]).

    Raises:
        BatchError: if x has no derivative: a mapping, or integers.
        ModelError: if a layer cannot be differentiated twice.
        OutOfMemoryError: if the device has too little memory.
    """
    if isinstance(batch, Mapping) or not batch[0].is_floating_point():
        raise BatchError(
            "The perturbation mode differentiates by x, so it needs (x, y) batches with x of a "
            'floating dtype. For token ids use mode="up".'
        )
    check_model(model)
    check_mode(model)
    parameters = selected_parameters(model, blocks.shapes)
    with differentiating(model):
        x = batch[0].detach().clone().requires_grad_()
        losses = check_losses(objective.losses(model, (x, batch[1])), batch)
        grads = torch.autograd.grad(
            losses.sum(), list(parameters.values()), create_graph=True, materialize_grads=True
        )
        total = blocks.gather(
            {name: g.unsqueeze(0) for name, g in zip(parameters, grads, strict=True)}, x.device
        )
        return OrderedDict(
            (block, torch.stack(list(_derivatives(total[block][0], vectors, x))))
            for block, vectors in factors.items()
        )


def _derivatives(gradient: Tensor, vectors: Tensor, x: Tensor) -> Iterable[Tensor]:
    for vector in vectors:
        if not gradient.requires_grad:
            yield torch.zeros_like(x, dtype=vectors.dtype)
            continue
        product = torch.dot(vector.clone().to(gradient.dtype), gradient)
        try:
            (derivative,) = torch.autograd.grad(
                product, x, retain_graph=True, materialize_grads=True
            )
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            raise ModelError(
                f"A layer cannot be differentiated twice: {error}. For attention use the eager "
                "implementation, or run under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
            ) from error
        yield derivative.to(vectors.dtype)
