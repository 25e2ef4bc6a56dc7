"""Where a model's own labels come from: its logits at the labels of a batch, and other labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pydvl_datainf.batches import Batch
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.classification import SequenceClassification, TokenClassification
from pydvl_datainf.objectives.language import CausalLM
from pydvl_datainf.objectives.output_loss import OutputLoss
from pydvl_datainf.objectives.protocol import Objective
from pydvl_datainf.objectives.tokens import IGNORED, raised, without_padding
from pydvl_datainf.quantised import unpacked

MASK = "attention_mask"


@dataclass(frozen=True, slots=True, eq=False)
class LabelLogits:
    """The logits of the N labels of a batch that count.

    Args:
        logits: (N, K), sample by sample, and in a text in its order.
        labels: of the batch, of any shape with N that count.
        counted: which of them do, shaped like them.
        is_mean: whether the loss of a sample is the mean of those of its labels.
    """

    logits: Tensor
    labels: Tensor
    counted: Tensor
    is_mean: bool

    @property
    def sample_of(self) -> Tensor:
        """For each of them its sample in the batch, (N,)."""
        return self.counted.nonzero()[:, 0]

    def replaced(self, chosen: Tensor) -> Tensor:
        """The labels of the batch with others, (N,), in place of those that count."""
        labels = self.labels.clone()
        labels[self.counted] = chosen.to(labels)
        return labels


def label_logits(objective: Objective, model: nn.Module, batch: Batch) -> LabelLogits:
    """The logits of a model at the labels of a batch, where its loss is their cross entropy.

    Args:
        objective: `SequenceClassification` with one label, `TokenClassification`, `CausalLM`, or
            torch's cross entropy of outputs (B, K).
        model: in evaluation mode.
        batch: of B samples.

    Returns:
        The logits, and where their labels are.

    Raises:
        ObjectiveError: if the loss is none of these.
    """
    with torch.no_grad(), unpacked(model):
        if type(objective) is OutputLoss:
            return _of_outputs(objective, model, batch)
        if isinstance(batch, Mapping) and type(objective) in _KNOWN:
            return _of_texts(objective, model, batch)
    raise ObjectiveError(_UNKNOWN.format(type(objective).__name__))


def with_labels(objective: Objective, batch: Batch, labels: Tensor) -> Batch:
    """The batch with other labels; what the model is given stays as it is."""
    if isinstance(batch, Mapping):
        return {**batch, _key(objective): labels}
    return batch[0], labels


_KNOWN = (SequenceClassification, TokenClassification, CausalLM)
_UNKNOWN = (
    "The labels that a model would give are known for torch's cross entropy of outputs (B, classes)"
    ", SequenceClassification with one label, TokenClassification and CausalLM, got {}. Use "
    'curvature="empirical", the gradients at the given labels.'
)


def _key(objective: Any) -> str:
    key: str = objective.labels
    return key


def _of_outputs(objective: OutputLoss, model: nn.Module, batch: Batch) -> LabelLogits:
    if isinstance(batch, Mapping) or not _is_cross_entropy(objective.loss):
        raise ObjectiveError(_UNKNOWN.format(getattr(objective.loss, "__name__", objective.loss)))
    x, y = batch
    outputs = model(x)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or y.shape != outputs.shape[:1]:
        raise ObjectiveError(_UNKNOWN.format("outputs or labels of another shape"))
    if 0 <= getattr(objective.loss, "ignore_index", IGNORED) < outputs.shape[1]:
        raise ObjectiveError(_UNKNOWN.format("one that ignores a class that the model can give"))
    if y.is_floating_point():
        raise ObjectiveError(_UNKNOWN.format("labels that are not integers"))
    return LabelLogits(raised(outputs), y, torch.ones_like(y, dtype=torch.bool), is_mean=False)


def _is_cross_entropy(loss: Any) -> bool:
    if type(loss) is nn.CrossEntropyLoss:
        return loss.weight is None and not loss.label_smoothing
    return loss is F.cross_entropy


def _of_texts(objective: Any, model: nn.Module, batch: Mapping[str, Tensor]) -> LabelLogits:
    seen = _CrossEntropies()
    with seen:
        objective.losses(model, batch)
    labels = batch[_key(objective)]
    counted = _counted(objective, labels, batch.get(MASK))
    if len(seen.logits) != 1 or not torch.equal(seen.targets[0], labels[counted].long()):
        raise ObjectiveError(_UNKNOWN.format(f"another loss of {type(objective).__name__}"))
    is_mean = getattr(objective, "reduction", "sum") == "mean"
    return LabelLogits(raised(seen.logits[0]), labels, counted, is_mean)


def _counted(objective: Objective, labels: Tensor, mask: Tensor | None) -> Tensor:
    """Which labels the objective counts, wherever padding is."""
    if isinstance(objective, SequenceClassification):
        return torch.ones_like(labels, dtype=torch.bool)
    counted = without_padding(labels, mask) != IGNORED
    if isinstance(objective, CausalLM):  # nothing predicts the first token of a text
        first = 0 if mask is None else mask.bool().int().argmax(1, keepdim=True)
        counted &= torch.arange(labels.shape[1], device=labels.device) != first
    return counted


class _CrossEntropies(TorchFunctionMode):
    """While it is entered, keeps what cross entropies are taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch."""
        if func is F.cross_entropy:
            self.logits.append(args[0])
            self.targets.append(args[1])
        return func(*args, **(kwargs or {}))
