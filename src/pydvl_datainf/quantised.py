"""Weights of 8 or 4 bits, as bitsandbytes has them: recognised by their attributes."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pydvl_datainf.errors import ModelError

_PACKS = "support_avx512bf16_for_cpu"


def statistics_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What stands beside quantised weights, and is neither a parameter nor a buffer.

    Args:
        model: any.

    Yields:
        Names, as they are in a state dict, and tensors: scales, codes, and what describes them.
    """
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        state = getattr(weight, "quant_state", None)  # of 4 bits
        if state is not None:
            for name, tensor in state.as_dict(packed=True).items():
                yield f"{path}.weight.{name}", tensor
        # Of 8 bits; the first pass takes it from the weight into the layer.
        for holder in (weight, vars(module).get("state")):
            scales = getattr(holder, "SCB", None)
            if isinstance(scales, Tensor):
                yield f"{path}.SCB", scales


def check_unpacked(model: nn.Module) -> None:
    """Checks that no weights of 4 bits lie as bitsandbytes packs them for inference on some CPUs.

    It does so, once for all, when a layer is called without gradients. The packed layer has none
    by its input, rounds to bfloat16, and what it was is lost.

    Args:
        model: about to be differentiated.

    Raises:
        ModelError: if any does.
    """
    for path, module in model.named_modules():
        state = getattr(module._parameters.get("weight"), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ModelError(
                f"'{path}' was packed by bitsandbytes for inference on this CPU, as it does when a "
                "model is called under no_grad, and has no gradients any more. Load the model "
                f"again, and set {_PACKS} = False in such layers before they are called."
            )


def forbid_packing(model: nn.Module) -> None:
    """Keeps bitsandbytes from packing weights on a CPU, from now on.

    Args:
        model: is changed.
    """
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Keeps bitsandbytes from packing weights while it is open.

    Args:
        model: about to be called.

    Yields:
        Nothing.
    """
    layers = [module for module in model.modules() if vars(module).get(_PACKS)]
    for layer in layers:
        setattr(layer, _PACKS, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, _PACKS, True)
