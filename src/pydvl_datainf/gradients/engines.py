"""What an engine is: whatever turns a batch into rows of per-sample gradients."""

from typing import Protocol

from pydvl_datainf.batches import Batch
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.vectors import BlockVectors


class GradientEngine(Protocol):
    """Whatever turns a batch into rows of per-sample gradients."""

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block the gradients as rows, shape (B, d_l), in float32, or float64 where the
            parameters are.
        """
        ...


class LossGradientEngine(GradientEngine, Protocol):
    """One that knows the losses too, from the passes that give their gradients."""

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes gradients as `rows_with_losses` does, and nothing else.

        Args:
            batch: as there.

        Returns:
            For each block the gradients as rows, shape (B, d_l).
        """
        rows = self.rows_with_losses(batch)
        del rows[LOSS]
        return rows

    def rows_with_losses(self, batch: Batch) -> BlockVectors:
        """Computes the gradients of the samples' own losses, and their losses beside them.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block the gradients as rows, shape (B, d_l), and under `LOSS` the losses,
            (B, 1), all in float32, or float64 where the parameters are.
        """
        ...
