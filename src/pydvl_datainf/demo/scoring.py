"""Scores of the training reviews, and what they are when read as suspicions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pydvl_datainf.demo.tuning import Batch
from pydvl_datainf.evaluation import Floats, relative_influence, suspicion_ranks
from pydvl_datainf.influence import HessianFreeInfluence
from pydvl_datainf.objectives import SequenceClassification
from pydvl_datainf.vectors import total

MEAN_INFLUENCE = "Mean influence (DataInf)"


@dataclass(frozen=True, slots=True)
class Scores:
    """What was computed for n training reviews on m test reviews.

    Attributes:
        influences: dataInf influences, (m, n), positive where a training review helps.
        self_influences: dataInf influence of each training review on itself, (n,).
        hessian_free: mean test gradient times each training gradient, (n,).
        scaled_hessian_free: the same, with the product in each block divided by its λ, (n,).
        losses: loss of each training review under its given label, (n,), in nats.
    """

    influences: Floats
    self_influences: Floats
    hessian_free: Floats
    scaled_hessian_free: Floats
    losses: Floats

    def suspicions(self) -> dict[str, Floats]:
        """Each score by its name for display, as a suspicion: larger where a label looks wrong.

        Returns:
            Names and suspicions, each (n,).
        """
        mean = self.influences.mean(axis=0, dtype=np.float64)
        relative = relative_influence(mean, self.self_influences)
        return {
            MEAN_INFLUENCE: -mean,
            "Median influence (DataInf)": -np.median(self.influences.astype(np.float64), axis=0),
            "Self-influence (DataInf)": self.self_influences,
            "Relative influence (DataInf)": -relative,
            "Hessian-free": -self.hessian_free,
            "Hessian-free, scaled": -self.scaled_hessian_free,
            "Training loss": self.losses,
            "Suspicion: ranks of loss and relative": suspicion_ranks(self.losses, relative),
        }


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


def compute_losses(model: nn.Module, batches: Iterable[Batch]) -> Floats:
    """Computes the loss of each review.

    Args:
        model: a classifier in eval mode.
        batches: m reviews with labels.

    Returns:
        Losses, (m,), in nats.
    """
    objective = SequenceClassification()
    with torch.no_grad():
        losses = [objective.losses(model, batch) for batch in batches]
    return torch.cat(losses).double().numpy()


def compute_products(
    influence: HessianFreeInfluence, test: Batch, train: DataLoader[Batch]
) -> dict[str, Floats]:
    """Computes mean influences on the test reviews without curvature.

    Of the mean gradient ḡ of the test reviews and the gradient gₖ of each training review k these
    are Σ_l ḡ[l]ᵀ gₖ[l], and Σ_l ḡ[l]ᵀ gₖ[l] / λ_l, over the blocks l.

    Args:
        influence: scaled, not fitted.
        test: m reviews.
        train: n reviews.

    Returns:
        Both, by the names of their columns, (n,), positive where a training review helps.
    """
    influence.fit(train)
    factors = influence.influence_factors_by_block(test).items()
    mean = {block: F.mean(dim=0) for block, F in factors}
    chunks = [
        {block: rows[block] @ f for block, f in mean.items()}
        for rows in influence.training_gradients_by_block()
    ]
    scaled = {block: torch.cat([chunk[block] for chunk in chunks]) for block in mean}
    plain = {block: products * influence.damping[block] for block, products in scaled.items()}
    return {
        "hessian_free": total(plain).numpy(),
        "scaled_hessian_free": total(scaled).numpy(),
    }


def _without_labels(batch: Mapping[str, Tensor]) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
