"""Per-sample gradients by `torch.func`: the plain mathematics, without hooks.

Slower than capture, since every sample's forward pass is mapped on its own, and refused by models
that vmap cannot enter. It serves as the second opinion.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils import _pytree as pytree

from pydvl_datainf.batches import Batch, copy_batch, signature
from pydvl_datainf.blocks import Blocks
from pydvl_datainf.devices import devices_of
from pydvl_datainf.errors import DataInfError, ModelError
from pydvl_datainf.gradients.checks import (
    Tolerance,
    check_finite_losses,
    check_finite_rows,
    check_independent,
    check_not_by_chance,
    random_states,
)
from pydvl_datainf.gradients.engines import LossGradientEngine
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.gradients.supported import (
    check_mode,
    check_model,
    differentiating,
    rows_dtype,
    selected_parameters,
)
from pydvl_datainf.objectives import ImageLayout, Objective, check_losses
from pydvl_datainf.vectors import BlockVectors


class FunctionalEngine(LossGradientEngine):
    """Gradients by `vmap(grad(loss))` over the samples of a batch.

    Args:
        model: left exactly as it was.
        objective: gives one loss per sample.
        blocks: the parameters that are differentiated.
    """

    def __init__(self, model: nn.Module, objective: Objective, blocks: Blocks):
        self.model = model
        self.objective = objective
        self.blocks = blocks
        self._checked: set[Any] = set()

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses, and their losses beside them.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block the gradients as rows, shape (B, d_l), and under `LOSS` the losses,
            (B, 1), all in float32, or float64 where the parameters are.

        Raises:
            ModelError: if vmap cannot enter the model.
            DataInfError: whatever the objective refuses.
            OutOfMemoryError: if the device has too little memory.
        """
        check_model(self.model)
        check_mode(self.model)
        selected = selected_parameters(self.model, self.blocks.shapes)
        parameters = {name: p.detach() for name, p in selected.items()}
        module = _Losses(self.model, self.objective)

        def loss(parameters: dict[str, Tensor], sample: Batch) -> Tensor:
            one = pytree.tree_map(lambda t: t.unsqueeze(0), sample)
            named = {f"model.{name}": p for name, p in parameters.items()}
            losses: Tensor = functional_call(module, named, (one,))
            return losses[0]

        try:
            with differentiating(self.model):
                rows, losses = vmap(grad_and_value(loss), in_dims=(None, 0))(parameters, batch)
                check_finite_losses(losses, batch)
                if signature(batch) not in self._checked:
                    self._check(module, batch, losses)
                    self._checked.add(signature(batch))
        except (DataInfError, torch.cuda.OutOfMemoryError):
            raise
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f'torch.func cannot map this model over samples: {error} Use gradients="auto".'
            ) from error
        dtype = rows_dtype(parameters.values())
        # Detached from trainable parameters outside the blocks.
        detached = {name: v.detach().to(dtype) for name, v in rows.items()}
        vectors = self.blocks.gather(detached, next(self.model.parameters()).device)
        check_finite_rows(vectors)
        vectors[LOSS] = losses.detach()[:, None].to(dtype)
        return vectors

    def _check(self, module: "_Losses", batch: Batch, losses: Tensor) -> None:
        """Compares losses of samples by themselves with those of a batch, and looks for chance."""
        devices = devices_of(self.model)
        tolerance, before = Tolerance.of(self.model, devices[0]), random_states(devices)
        together = module(copy_batch(batch)).detach()
        has_drawn = random_states(devices) != before
        check_independent(together, losses, tolerance, "alone")
        if has_drawn:
            check_not_by_chance(lambda: module(copy_batch(batch)), tolerance)


class _Losses(nn.Module):
    """Model and objective as one module, so that the objective sees swapped parameters."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self.objective: Any = objective
        self.images = ImageLayout.of(model)
        self.training = model.training  # not train(), which would change the mode of the layers

    def forward(self, batch: Batch) -> Tensor:
        given = self.images.as_given(batch)
        return check_losses(self.objective.losses(self.model, given), batch)
