"""The loss of a reward model on pairs of answers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.preference import SIDES
from pydvl_datainf.objectives.tokens import raised


class Reward:
    r"""The loss of a reward model r, by which a chosen answer y₊ is to beat a rejected one y₋.

        −log σ( r(x, y₊) − r(x, y₋) − m )

    where m is the `margin` of the pair, 0 unless the batch has one. Source: Bradley and Terry,
    "Rank Analysis of Incomplete Block Designs", 1952; with margins Touvron et al., "Llama 2", 2023.
    A batch is a mapping with, for each `side` of "chosen" and "rejected", `side_input_ids` and
    `side_attention_mask`.
    """

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each pair.

        Args:
            model: a classifier of sequences with one output.
            batch: a mapping of tensors with B pairs.

        Returns:
            Losses in nats, shape (B,).

        Raises:
            ObjectiveError: if tensors are missing, or the model has not one output.
        """
        chosen, rejected = (_rewards(model, batch, side) for side in SIDES)
        assert isinstance(batch, Mapping)  # or there would be no rewards
        margin: Any = batch.get("margin", 0.0)
        return -F.logsigmoid(chosen - rejected - margin)


def _rewards(model: nn.Module, batch: Batch, side: str) -> Tensor:
    """Of one side: r(x, y), (B,)."""
    prefix = f"{side}_"
    named = batch.items() if isinstance(batch, Mapping) else ()
    inputs = {n.removeprefix(prefix): t for n, t in named if n.startswith(prefix)}
    if "input_ids" not in inputs:
        got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
        raise ObjectiveError(f"Reward needs a mapping with the key '{prefix}input_ids', got {got}.")
    logits = getattr(model(**inputs), "logits", None)
    if not isinstance(logits, Tensor) or logits.shape != (len(inputs["input_ids"]), 1):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else "no logits"
        raise ObjectiveError(
            f"Reward needs a model with one output for each text, logits (B, 1), got {shape}. Load "
            "it as AutoModelForSequenceClassification with num_labels=1."
        )
    return raised(logits[:, 0])
