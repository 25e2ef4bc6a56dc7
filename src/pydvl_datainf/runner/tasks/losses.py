"""The losses of training samples into the store, where they did not come with the gradients."""

import torch

from pydvl_datainf.results.record import TRAINING_LOSS
from pydvl_datainf.runner.tasks.context import Context
from pydvl_datainf.runner.worker_inputs import Inputs


def write_losses(tile: int, context: Context, inputs: Inputs) -> None:
    """The losses of a training tile."""
    spec, wanted = context.spec, context.spec.plan.train[tile]
    assert inputs.train is not None  # a query has the losses of the run whose rows it uses
    assert spec.train is not None
    of_parts = context.each(inputs, inputs.train, spec.train, wanted, inputs.influence.losses)
    losses = torch.cat([part for _, part in of_parts])
    context.store.write(TRAINING_LOSS, wanted, losses.cpu().numpy().astype(spec.dtype))
