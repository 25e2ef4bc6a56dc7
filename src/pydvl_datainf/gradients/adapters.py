"""Whether adapters take part in the forward pass; peft's are recognised by their attributes."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pydvl_datainf.errors import ModelError


def check_adapters(model: nn.Module, names: Iterable[str] = ()) -> None:
    """Checks that no adapter is disabled, and that those of the named parameters are in use.

    An adapter that is merged or not active has gradients of zero, which are no answer.

    Args:
        model: about to be differentiated, with or without adapters.
        names: of the parameters that are differentiated.

    Raises:
        ModelError: if an adapter is disabled, or one of the parameters belongs to an adapter that
            is merged or not active.
    """
    layers = {
        path: m for path, m in model.named_modules() if hasattr(type(m), "adapter_layer_names")
    }
    for path, layer in layers.items():
        if layer.disable_adapters:
            raise ModelError(
                f"The adapters of '{path}' are disabled, so this is not the model that was tuned. "
                "Call model.enable_adapter_layers(), or leave the context of "
                "model.disable_adapter(); for the model without adapters pass model.unload()."
            )
    for name in names if layers else ():
        _check_in_use(name, layers)


def _check_in_use(name: str, layers: Mapping[str, Any]) -> None:
    """Names of such parameters are <path of the layer>.<lora_A or so>.<adapter>[.weight]."""
    parts = name.split(".")
    for i in range(len(parts) - 1):
        layer, kind, adapter = layers.get(".".join(parts[:i])), parts[i], parts[i + 1]
        if layer is None or kind not in layer.adapter_layer_names:
            continue
        if layer.merged_adapters:
            raise ModelError(
                f"Adapters are merged into '{'.'.join(parts[:i])}', which hides '{name}' from the "
                "forward pass. Call model.unmerge_adapter()."
            )
        if adapter not in layer.active_adapters:
            raise ModelError(
                f"'{name}' belongs to the adapter '{adapter}', but {list(layer.active_adapters)} "
                f"is active. Call model.set_adapter('{adapter}'), or build an influence model of "
                "the active one."
            )
