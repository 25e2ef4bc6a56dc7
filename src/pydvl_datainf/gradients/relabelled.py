r"""Rows of the true Gauss-Newton matrix: gradients at the labels that the model itself would give.

For a cross entropy of K labels with probabilities p under the model, and g_k the gradient at label
k, the Gauss-Newton matrix of a sample's loss, which is its Fisher matrix too, is

    Jᵀ (diag(p) − p pᵀ) J  =  Σ_k p_k g_k g_kᵀ  =  E [ g_ŷ g_ŷᵀ ],   ŷ drawn from p

with J the derivative of the logits, since Σ_k p_k g_k = 0. So it is a sum over the rows √p_k g_k,
or has the one row g_ŷ as an unbiased estimate. Where a loss is the mean over T tokens with a label
each, the matrix is the mean of theirs. There the row at drawn labels is (1/T) Σ_t g_t, whose
products between tokens have the mean zero, so that it is multiplied by √T.

Labels are drawn by the content of the sample, so that neither order nor batches nor padding matter,
and copies of a sample get the same ones.
"""

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch, batch_length, batch_named, slice_batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.fingerprint import as_bytes
from pydvl_datainf.gradients.by_length import MASK, by_length
from pydvl_datainf.gradients.engines import GradientEngine
from pydvl_datainf.objectives import ImageLayout, Objective
from pydvl_datainf.objectives.own_labels import LabelLogits, label_logits, with_labels
from pydvl_datainf.objectives.tokens import has_tokens
from pydvl_datainf.vectors import BlockVectors, concatenated

Labels: TypeAlias = Literal["auto", "all", "drawn"]

MOST_CLASSES = 16
"""Labels of a sample up to which all of them are taken."""


@dataclass(frozen=True, slots=True, eq=False)
class DrawnLabels:
    """Gives batches labels that are drawn from the model's own distribution.

    Args:
        model: whose distribution.
        objective: gives one loss per sample.
        seed: of the draws.
    """

    model: nn.Module
    objective: Objective
    seed: int

    def __call__(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Draws a label for each that there is.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            The batch with them, and by what the gradient of each sample is multiplied, (B,): √T
            where its loss is the mean over T labels; None = by one.
        """
        given = ImageLayout.of(self.model).as_given(batch)
        found = label_logits(self.objective, self.model, given)
        labels = found.replaced(drawn(found, batch, self.seed))
        counts = torch.bincount(found.sample_of, minlength=batch_length(batch))
        weights = counts.double().sqrt() if found.is_mean else None
        return with_labels(self.objective, batch, labels), weights


class DrawnEngine:
    """Rows at labels that are drawn from the model's own distribution, one for each label.

    Args:
        engine: computes gradients.
        model: whose they are.
        objective: gives one loss per sample.
        seed: of the draws.
    """

    def __init__(self, engine: GradientEngine, model: nn.Module, objective: Objective, seed: int):
        self.engine, self.labels = engine, DrawnLabels(model, objective, seed)

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the gradients at drawn labels.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block such gradients as rows, shape (B, d_l), times √T where a sample's loss is
            the mean over T labels.
        """
        relabelled, weights = self.labels(batch)
        rows = self.engine.rows(relabelled)
        return rows if weights is None else _times(rows, weights)


class ClassEngine:
    """Rows √(K p_k) g_k of one class k: those of all K classes have the mean product Σ_k p_k g gᵀ.

    Args:
        engine: computes gradients.
        model: whose they are.
        objective: gives one loss per sample, of one label.
        k: the class.
    """

    def __init__(self, engine: GradientEngine, model: nn.Module, objective: Objective, k: int):
        self.engine, self.model, self.objective, self.k = engine, model, objective, k
        self.images = ImageLayout.of(model)

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes the weighted gradients at one label.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block such rows, shape (B, d_l).
        """
        found = label_logits(self.objective, self.model, self.images.as_given(batch))
        labels = found.replaced(torch.full_like(found.labels[found.counted], self.k))
        rows = self.engine.rows(with_labels(self.objective, batch, labels))
        p = found.logits.double().softmax(1)
        return _times(rows, (p.shape[1] * p[:, self.k]).sqrt())


class GaussNewtonEngine:
    """Rows of the Gauss-Newton matrix: of all classes, or at drawn labels.

    Args:
        engine: computes gradients.
        model: whose they are.
        objective: gives one loss per sample.
        labels: "all", "drawn", or "auto": all where a sample has one label of 16 or fewer.
        seed: of the draws.
        max_tokens: as in `ByLengthEngine`; None = batches are computed as they are.

    Raises:
        ObjectiveError: if there is no such choice of labels.
    """

    def __init__(
        self,
        engine: GradientEngine,
        model: nn.Module,
        objective: Objective,
        labels: Labels,
        seed: int,
        max_tokens: int | None,
    ):
        if labels not in ("auto", "all", "drawn"):
            raise ObjectiveError(f'labels must be "auto", "all" or "drawn", got {labels!r}.')
        if type(seed) is not int or seed < 0:
            raise ObjectiveError(f"label_seed must be a number that is not negative, got {seed!r}.")
        self.engine, self.model, self.objective, self.labels = engine, model, objective, labels
        self.seed, self.max_tokens, self.images = seed, max_tokens, ImageLayout.of(model)
        self._engines: list[GradientEngine] | None = None

    def rows(self, batch: Batch) -> BlockVectors:
        """Computes rows whose mean product is the Gauss-Newton matrix, or an estimate of it.

        Args:
            batch: a checked batch of B samples on the model's device.

        Returns:
            For each block B rows of drawn labels, or B K of all K classes, shape (…, d_l).
        """
        if self._engines is None:
            self._engines = [by_length(engine, self.max_tokens) for engine in self._chosen(batch)]
        return concatenated([engine.rows(batch) for engine in self._engines])

    def settings(self, batch: Batch) -> dict[str, str | int]:
        """What tells these rows from others, as JSON holds it.

        Args:
            batch: a checked batch on the model's device, of any samples.

        Returns:
            Which labels, rows of each sample, and the seed of draws.
        """
        engines = self._chosen(batch)
        if isinstance(engines[0], DrawnEngine):
            return {"labels": "drawn", "rows": 1, "label_seed": self.seed}
        return {"labels": "all", "rows": len(engines)}

    def _chosen(self, batch: Batch) -> list[GradientEngine]:
        given = (self.engine, self.model, self.objective)
        one = self.images.as_given(slice_batch(batch, 0, 1))
        found = label_logits(self.objective, self.model, one)
        classes, is_single = found.logits.shape[1], found.labels.ndim == 1
        if self.labels == "all" and not is_single:
            raise ObjectiveError(
                'labels="all" is for one label a sample, and here each token has one. Use '
                'labels="drawn".'
            )
        takes_all = is_single and classes <= MOST_CLASSES
        if self.labels == "all" or (self.labels == "auto" and takes_all):
            return [ClassEngine(*given, k) for k in range(classes)]
        return [DrawnEngine(*given, self.seed)]


def drawn(found: LabelLogits, batch: Batch, seed: int) -> Tensor:
    """Labels from the model's own distribution.

    Args:
        found: the logits.
        batch: of B samples, whose content seeds their draws.
        seed: another one makes other draws.

    Returns:
        A label for each of the logits, (N,).
    """
    counts = torch.bincount(found.sample_of, minlength=batch_length(batch)).tolist()
    digests = _digests(batch, seed)
    uniform = [np.random.default_rng(d).random(c) for d, c in zip(digests, counts, strict=True)]
    below = found.logits.double().softmax(1).cumsum(1)
    u = torch.from_numpy(np.concatenate(uniform)).to(below.device)[:, None]
    # Rounding may leave the last sum below one.
    return (u * below[:, -1:] >= below).sum(1).clamp(max=below.shape[1] - 1)


def _digests(batch: Batch, seed: int) -> list[int]:
    """For each sample a number that follows from its content, without padding."""
    named = {name: tensor.cpu() for name, tensor in sorted(batch_named(batch).items())}
    mask = named.get(MASK)
    found = []
    for i in range(batch_length(batch)):
        digest = blake2b(str(seed).encode(), digest_size=16)
        for name, tensor in named.items():
            if name.endswith(MASK):
                continue  # it may be left out where there is no padding
            own = tensor[i]
            if mask is not None and mask.ndim == 2 and has_tokens(name, tensor, mask.shape):
                own = own[mask[i].bool()]
            digest.update(name.encode())
            digest.update(as_bytes(own))
        found.append(int.from_bytes(digest.digest()))
    return found


def _times(rows: BlockVectors, weights: Tensor) -> BlockVectors:
    """Each sample's row times its weight."""
    return OrderedDict((block, v * weights.to(v)[:, None]) for block, v in rows.items())
