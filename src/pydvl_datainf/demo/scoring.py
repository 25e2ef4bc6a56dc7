"""Scores of the training reviews, and what they are when read as suspicions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pydvl_datainf.demo.tuning import Batch
from pydvl_datainf.evaluation import Floats, relative_influence
from pydvl_datainf.influence import DataInfInfluence
from pydvl_datainf.objectives import SequenceClassification

MEAN_INFLUENCE = "Mean influence (DataInf)"


@dataclass(frozen=True, slots=True)
class Scores:
    """What was computed for n training reviews on m test reviews.

    Attributes:
        influences: dataInf influences, (m, n), positive where a training review helps.
        self_influences: dataInf influence of each training review on itself, (n,).
        hessian_free: mean test gradient times each training gradient, (n,).
        losses: loss of each training review under its given label, (n,), in nats.
    """

    influences: Floats
    self_influences: Floats
    hessian_free: Floats
    losses: Floats

    def suspicions(self) -> dict[str, Floats]:
        """Each score by its name for display, as a suspicion: larger where a label looks wrong.

        Returns:
            Names and suspicions, each (n,).
        """
        mean = self.influences.mean(axis=0, dtype=np.float64)
        return {
            MEAN_INFLUENCE: -mean,
            "Self-influence (DataInf)": self.self_influences,
            "Relative influence (DataInf)": -relative_influence(mean, self.self_influences),
            "Hessian-free": -self.hessian_free,
            "Training loss": self.losses,
        }


def compute_losses(model: nn.Module, batches: Iterable[Batch]) -> Floats:
    """Computes the loss of each review under its given label.

    Args:
        model: a classifier in eval mode.
        batches: n reviews.

    Returns:
        Losses in nats, (n,).
    """
    objective = SequenceClassification()
    with torch.no_grad():
        return torch.cat([objective.losses(model, batch) for batch in batches]).numpy()


def compute_predictions(model: nn.Module, batches: Iterable[Batch]) -> npt.NDArray[np.int64]:
    """Computes the label that the model gives to each review.

    Args:
        model: a classifier in eval mode.
        batches: m reviews; their labels are not looked at.

    Returns:
        Labels, (m,).
    """
    with torch.no_grad():
        logits = [model(**_without_labels(batch)).logits for batch in batches]
    return torch.cat(logits).argmax(dim=1).numpy()


def compute_hessian_free(
    influence: DataInfInfluence, test: Batch, batches: Iterable[Batch], progress: bool
) -> Floats:
    """Computes the mean influence on the test reviews with the identity in place of the inverse.

    This is the dot product ḡᵀ gₖ of the mean gradient of the test reviews and the gradient of
    each training review k, over all blocks at once.

    Args:
        influence: gives the gradients.
        test: m reviews.
        batches: n training reviews.
        progress: show a bar.

    Returns:
        Products, (n,), positive where a training review helps.
    """
    mean = influence.loss_gradients(test).mean(dim=0)
    bar = tqdm(batches, desc="Hessian-free", unit="batch", disable=not progress)
    return torch.cat([influence.loss_gradients(batch) @ mean for batch in bar]).numpy()


def _without_labels(batch: Mapping[str, Tensor]) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
