"""The losses of samples, by the objective and under the settings of gradients, but without them."""

from collections import OrderedDict

from torch import nn

from pydvl_datainf.batches import Batch, copy_batch
from pydvl_datainf.gradients.checks import check_finite_losses
from pydvl_datainf.gradients.supported import check_mode, check_model, differentiating
from pydvl_datainf.objectives import ImageLayout, Objective, check_losses
from pydvl_datainf.vectors import BlockVectors

LOSS = "loss."
"""Under which losses go beside the blocks of rows, or alone: no module's name ends so."""


class LossEngine:
    """The loss of each sample as a row of one number: what cuts batches for gradients cuts these.

    Args:
        model: left as it was.
        objective: gives one loss per sample.
    """

    def __init__(self, model: nn.Module, objective: Objective):
        self.model = model
        self.objective = objective
        self.images = ImageLayout.of(model)

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the losses of a batch in one forward pass.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            Under the name `LOSS` the losses, shape (B, 1), detached.

        Raises:
            ModelError: if samples have no losses of their own; NonFiniteError if one is not finite.
            ObjectiveError: if the objective does not give one loss per sample.
            OutOfMemoryError: if the device has too little memory.
        """
        check_model(self.model)
        check_mode(self.model)
        # With gradients, which an objective may take of its own.
        with differentiating(self.model):
            given = self.images.as_given(copy_batch(batch))
            losses = check_losses(self.objective.losses(self.model, given), batch).detach()
        check_finite_losses(losses, batch)
        return OrderedDict({LOSS: losses[:, None]})
