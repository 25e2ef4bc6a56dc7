"""Queries other than the loss: by how much the right answer of a test sample leads.

Their sign is that of a loss, small where the model is right, so that a positive influence is
helpful as ever: more weight on the training sample makes the lead larger.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.preference import SIDES, log_probabilities
from pydvl_datainf.objectives.tokens import labels_in, raised

Against: TypeAlias = Literal["best", "all", "none"]

AGAINST = ("best", "all", "none")


class Margin:
    r"""Minus the margin by which a classifier prefers the right class y, of logits z.

    - "best": −(z_y − max_{c≠y} z_c), against the best of the other classes;
    - "all": −(z_y − log Σ_{c≠y} exp z_c) = −log(p_y / (1 − p_y)), against all of them, as the
      log-odds of Park et al., "TRAK", ICML 2023, and without kinks;
    - "none": −z_y, the logit alone.

    Unlike the cross entropy it does not level off where the model is sure. A batch is a mapping
    with labels inside, for models that return `logits`, or an (x, y) pair, for models that return
    logits of shape (B, classes). Meant for `test_objective`; the margins themselves are
    `-Margin().losses(model, batch)`.

    Args:
        against: "best", "all" or "none".
        labels: the key of the labels in a mapping.

    Raises:
        ObjectiveError: if there is no such margin.
    """

    def __init__(self, against: Against = "best", labels: str = "labels"):
        if against not in AGAINST:
            raise ObjectiveError(f"against must be one of {AGAINST}, got {against!r}.")
        self.against = against
        self.labels = labels

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes minus the margin of each sample.

        Args:
            model: returns an object with `logits` of shape (B, classes), or for pairs the logits.
            batch: the model's inputs, and labels of shape (B,), integers.

        Returns:
            Minus margins of logits, shape (B,); NaN where a label is no class of the model.

        Raises:
            ObjectiveError: if the model is no classifier of two classes or more, or labels are
                missing or no integers of shape (B,).
        """
        if isinstance(batch, Mapping):
            inputs, y = labels_in(batch, self.labels, type(self).__name__)
            output = model(**inputs)
            z = getattr(output, "logits", None)
        else:
            x, y = batch
            z = output = model(x)
        z = raised(_checked_logits(z, output))
        y = _checked_labels(y, z).long()
        right = y.clamp(0, z.shape[1] - 1)[:, None]
        lead = z.gather(1, right)[:, 0]
        if self.against != "none":
            others = z.scatter(1, right, -torch.inf)
            lead = lead - (others.amax(1) if self.against == "best" else others.logsumexp(1))
        # NaN where there is no such class, which is refused with the sample's position.
        return (-lead).masked_fill(right[:, 0] != y, torch.nan)


class AnswerMargin:
    """Minus the margin by which a language model prefers one answer to another.

    log π(y₋|x) − log π(y₊|x), each the sum over the tokens of the answer. Meant for
    `test_objective`: what made the model prefer y₊ has positive influence. The training data may
    be of another kind, such as texts under `CausalLM`. For pairs under the loss of direct
    preference optimisation there is `Preference`.
    """

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes minus the margin of each pair of answers.

        Args:
            model: a causal language model.
            batch: a mapping with, for each `side` of "chosen" (y₊) and "rejected" (y₋),
                `side_input_ids`, `side_attention_mask` and `side_labels` as `CausalLM` takes them.

        Returns:
            Minus margins in nats, shape (B,).

        Raises:
            ObjectiveError: if tensors are missing or of another shape, or an answer has no token.
        """
        chosen, rejected = (log_probabilities(model, batch, side) for side in SIDES)
        return rejected - chosen


def _checked_logits(z: Any, output: Any) -> Tensor:
    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[1] < 2:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(output).__name__
        raise ObjectiveError(
            f"Margin needs logits of shape (B, classes), of two classes or more, got {got}. For "
            "other models write an objective of your own: a class with losses(model, batch)."
        )
    return z


def _checked_labels(y: Tensor, z: Tensor) -> Tensor:
    if y.shape != z.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        raise ObjectiveError(
            f"Margin needs one class for each sample, integers of shape ({len(z)},), got {y.dtype} "
            f"of shape {tuple(y.shape)}."
        )
    return y
