"""How samples become rows: batches are checked, moved to the model, cut, and given to an engine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf.batches import Batch, as_batches, batch_length, batch_to, split_batch
from pydvl_datainf.errors import BatchError, SourceError
from pydvl_datainf.gradients import GradientEngine, LossGradientEngine
from pydvl_datainf.gradients.losses import LOSS
from pydvl_datainf.gradients.relabelled import GaussNewtonEngine
from pydvl_datainf.gradients.sided import on_sides
from pydvl_datainf.gradients.sources import Reader
from pydvl_datainf.influence.arguments import Inputs
from pydvl_datainf.inverse.sides import Sides
from pydvl_datainf.objectives import ImageLayout
from pydvl_datainf.vectors import BlockVectors, concatenated


@dataclass(frozen=True, slots=True, eq=False)
class SampleRows:
    """Computes rows of samples by the engines of an influence model.

    Args:
        model: whose gradients they are.
        images: how the images of a batch follow from its tokens.
        engine: of the gradients of the loss.
        test_engine: of those of what is asked of test samples.
        curvature: of the rows that the inverse is made of, where they are not the gradients.
        losses: of the losses alone.
        batch_size: the largest number of samples in one computation; None = as given.
        progress: whether to show a bar.
    """

    model: nn.Module
    images: ImageLayout
    engine: LossGradientEngine
    test_engine: LossGradientEngine
    curvature: GaussNewtonEngine | None
    losses: GradientEngine
    batch_size: int | None
    progress: bool

    def reader(self, data: Iterable[Any]) -> Reader:
        """Reads data as rows of the loss."""
        device = next(self.model.parameters()).device
        return Reader(data, self.engine, device, self.batch_size, self.progress, images=self.images)

    def batch(self, x: Inputs, y: Tensor | None = None) -> Batch:
        """Samples as a checked batch on the model's device.

        Args:
            x: inputs, or a mapping that carries its labels.
            y: targets; None with a mapping.

        Returns:
            The batch.

        Raises:
            BatchError: if labels are missing, or there are two, or it is none otherwise.
        """
        is_mapping = isinstance(x, Mapping)
        if is_mapping and y is not None:
            raise BatchError(
                "A mapping carries its own labels, so y must be None. Put the labels into the "
                "mapping, under the key that the objective reads."
            )
        if not is_mapping and y is None:
            raise BatchError(
                "Inputs x came without labels y. Pass both (a mapping carries its own)."
            )
        batch = self.images.by_sample(x if is_mapping else (x, y))
        return batch_to(batch, next(self.model.parameters()).device)

    def of(self, batch: Batch, engine: GradientEngine | None = None) -> BlockVectors:
        """Rows of a batch as `batch` returns it, for each block (B, d_l): gradients of the loss.

        Args:
            batch: of B samples.
            engine: one of these here, which computes other rows; None = `engine`.

        Returns:
            The rows; (B K, d_l) of an engine that has K of each sample.
        """
        engine = engine or self.engine
        if self.batch_size is None or batch_length(batch) <= self.batch_size:
            return engine.rows(batch)
        pieces = list(split_batch(batch, self.batch_size))
        bar = tqdm(pieces, "gradients", leave=False, disable=not self.progress)
        return concatenated([engine.rows(piece) for piece in bar])

    def with_losses(self, batch: Batch) -> BlockVectors:
        """Gradients of the loss, and under `LOSS` the losses, (B, 1), from the same passes."""
        pieces = split_batch(batch, self.batch_size)
        return concatenated([self.engine.rows_with_losses(piece) for piece in pieces])

    def losses_of(self, data: Any) -> Tensor:
        """The loss of each sample, in one forward pass.

        Args:
            data: a loader, or a single batch.

        Returns:
            The losses, (n,), in the order of the data.

        Raises:
            SourceError: if there are no samples.
        """
        batches = as_batches(data)
        reader = replace(self.reader(batches), progress=self.progress and batches is data)
        parts = [self.losses.rows(batch)[LOSS][:, 0] for batch in reader.batches("losses")]
        if not parts:
            raise SourceError("The data is empty; losses need at least one sample.")
        return torch.cat(parts)

    def packed(self, sides: Mapping[str, Sides]) -> "SampleRows":
        """The same with gradients packed behind side bases, see `gradients.sided`."""
        engine, test_engine = on_sides(self.engine, sides), on_sides(self.test_engine, sides)
        return replace(self, engine=engine, test_engine=test_engine)
