"""The loss of direct preference optimisation, and what its reference model says."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from pydvl_datainf.batches import Batch, batch_to
from pydvl_datainf.errors import ObjectiveError
from pydvl_datainf.objectives.language import CausalLM
from pydvl_datainf.quantised import unpacked

SIDES = ("chosen", "rejected")


class Preference:
    r"""The loss of direct preference optimisation (DPO) on pairs of answers.

    With y₊ the chosen and y₋ the rejected answer to a prompt x, π the model and π₀ the reference,

        −log σ( β (log π(y₊|x)/π₀(y₊|x) − log π(y₋|x)/π₀(y₋|x)) )

    where log π(y|x) is the sum over the tokens of the answer. Source: Rafailov et al., "Direct
    Preference Optimization", NeurIPS 2023. A batch is a mapping with, for each `side` of "chosen"
    and "rejected", `side_input_ids`, `side_attention_mask` and `side_labels` as `CausalLM` takes
    them, and `ref_side_logps`, log π₀(y|x), shape (B,), from `reference_log_probabilities`.

    Args:
        beta: β > 0, how far the model may move from the reference.

    Raises:
        ObjectiveError: if β is not positive and finite.
    """

    def __init__(self, beta: float = 0.1):
        if not 0 < beta < inf:
            raise ObjectiveError(f"beta must be positive and finite, got {beta!r}.")
        self.beta = float(beta)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Computes the loss of each pair.

        Args:
            model: a causal language model.
            batch: a mapping of tensors with B pairs.

        Returns:
            Losses in nats, shape (B,).

        Raises:
            ObjectiveError: if tensors are missing or of another shape, or an answer has no token.
        """
        chosen, rejected = (self._log_ratios(model, batch, side) for side in SIDES)
        return -F.logsigmoid(self.beta * (chosen - rejected))

    def _log_ratios(self, model: nn.Module, batch: Batch, side: str) -> Tensor:
        """Of one side: log π(y|x) − log π₀(y|x)."""
        key = f"ref_{side}_logps"
        if not isinstance(batch, Mapping) or key not in batch:
            got = sorted(batch) if isinstance(batch, Mapping) else "an (x, y) pair"
            raise ObjectiveError(
                f"Preference needs a mapping with the key '{key}', got {got}. Compute it once by "
                "reference_log_probabilities."
            )
        own = log_probabilities(model, batch, side)
        if batch[key].shape != own.shape:
            raise ObjectiveError(
                f"'{key}' must be of shape {tuple(own.shape)}, got {tuple(batch[key].shape)}."
            )
        return own - batch[key].to(own.dtype)


def log_probabilities(model: nn.Module, batch: Batch, side: str) -> Tensor:
    """The log-probability of each answer of one side, the sum over its tokens.

    Args:
        model: a causal language model.
        batch: a mapping with `side_input_ids` and so on.
        side: "chosen" or "rejected".

    Returns:
        Log-probabilities in nats, shape (B,).

    Raises:
        ObjectiveError: if tensors are missing or of another shape, or an answer has no token.
    """
    prefix = f"{side}_"
    named = batch.items() if isinstance(batch, Mapping) else ()
    tensors = {n.removeprefix(prefix): t for n, t in named if n.startswith(prefix)}
    try:
        return -CausalLM("sum").losses(model, tensors)
    except ObjectiveError as error:
        raise ObjectiveError(f"The {side} answers of the pairs: {error}") from error


def reference_log_probabilities(
    model: Any, batches: Iterable[Batch], *, adapter: str | None = None
) -> dict[str, Tensor]:
    """Computes what the reference model says of the answers, once for all.

    Args:
        model: the reference, or a model with adapters of peft, which are disabled meanwhile; in
            evaluation mode.
        batches: mappings with n pairs in all, as `Preference` takes them.
        adapter: of peft, which with its base is the reference; None = the base alone is.

    Returns:
        `ref_chosen_logps` and `ref_rejected_logps`, each of shape (n,), on the CPU, to be put into
        the batches.

    Raises:
        ObjectiveError: if dropout is active, if there are no pairs, or if tensors are missing or of
            another shape.
    """
    _check_no_dropout(model)
    if isinstance(batches, Mapping):
        raise ObjectiveError("Expected a list of batches, got one batch. Put it into a list.")
    device = next(model.parameters()).device
    parts: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    with torch.no_grad(), unpacked(model), _as_reference(model, adapter):
        for batch in batches:
            for side in SIDES:
                parts[side].append(log_probabilities(model, batch_to(batch, device), side).cpu())
    if not parts["chosen"]:
        raise ObjectiveError("There are no pairs. An iterator of batches can be read only once.")
    return {f"ref_{side}_logps": torch.cat(values) for side, values in parts.items()}


def _check_no_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ObjectiveError(
                f"'{name}' is dropout in training mode, so the reference is random. Call "
                "model.eval()."
            )


@contextmanager
def _as_reference(model: Any, adapter: str | None) -> Iterator[None]:
    """Disables adapters that are enabled, or activates one in place of the one that is active.

    Afterwards they and what is trainable are as before.
    """
    with ExitStack() as stack:
        for parameter in model.parameters():
            # Enabling adapters makes all of their parameters trainable.
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
        if adapter is not None:
            stack.callback(model.set_adapter, model.active_adapter)
            model.set_adapter(adapter)
            yield
            return
        if hasattr(model, "disable_adapter"):
            stack.enter_context(model.disable_adapter())
        for layer in model.modules():  # those of transformers' and diffusers' own add_adapter
            if getattr(layer, "disable_adapters", None) is False:
                layer.enable_adapters(False)
                stack.callback(layer.enable_adapters, True)
        yield
