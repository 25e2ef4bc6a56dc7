"""Which models have per-sample gradients that can be seen from outside."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from pydvl_datainf.devices import devices_of
from pydvl_datainf.errors import ModelError
from pydvl_datainf.gradients.adapters import check_adapters
from pydvl_datainf.quantised import check_unpacked, unpacked

SMALLER = "To need less memory, lower batch_size, or for texts max_tokens."
"""What helps where a device has too little memory for the gradients of a batch."""


def check_model(model: nn.Module) -> None:
    """Checks that the layers of a model can be watched, and that all of its weights are there.

    Args:
        model: about to be differentiated; its layers may lie on several devices.

    Raises:
        ModelError: if it is compiled, scripted, sharded, offloaded, or wrapped for several devices,
            if its weights are packed for inference, or if its adapters are disabled.
    """
    check_adapters(model)
    check_unpacked(model)
    for name, module in model.named_modules():
        kind, where = type(module).__name__, f" ('{name}')" if name else ""
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ModelError(
                f"The model{where} is compiled, which hides its layers. Pass the original: "
                "model._orig_mod, or a copy on which .compile() was not called."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"The model{where} is scripted. Pass the Python module it came from.")
        if kind in ("DataParallel", "DistributedDataParallel", "DeepSpeedEngine"):
            raise ModelError(f"The model{where} is wrapped in {kind}. Pass model.module.")
        if kind == "FullyShardedDataParallel" or kind.startswith("FSDP"):
            raise ModelError(_sharded(f"The model{where}", kind))
    for name, p in model.named_parameters():
        if type(p).__name__ == "DTensor" or hasattr(p, "ds_id"):
            raise ModelError(_sharded(f"'{name}' of the model", "DTensor, or ZeRO stage 3"))
    absent = [name for name, p in model.named_parameters() if p.is_meta]
    if absent:
        raise ModelError(
            f"{len(absent)} parameters of the model have no values where they are ({absent[0]} "
            'first): a device map put them on "cpu" or "disk" beside a card, from which accelerate '
            "fetches them for each pass, or they were never loaded. Load the model with a "
            "device_map that has cards alone, with fewer bits (8 or 4), or whole on the CPU."
        )


def _sharded(what: str, how: str) -> str:
    return (
        f"{what} is sharded ({how}): no process sees a whole gradient. Gather it into a plain "
        "module; where that does not fit on one device, load it with a device_map, which spreads "
        "whole layers over several."
    )


def check_movable(model: nn.Module) -> None:
    """Checks that a model may be sent to another device.

    Args:
        model: any.

    Raises:
        ModelError: if it is spread over several.
    """
    devices = devices_of(model)
    if len(devices) > 1:
        raise ModelError(
            f"The model is spread over {', '.join(map(str, devices))}, where its layers expect "
            "their inputs, so it stays there. Load it again with another device_map."
        )


def check_mode(model: nn.Module) -> None:
    """Checks that no layer mixes the samples of a batch or draws random numbers.

    Args:
        model: about to be differentiated.

    Raises:
        ModelError: if dropout is active or batch normalisation uses the statistics of the batch.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ModelError(
                f"'{name}' normalises by the statistics of the batch, so a sample has no gradient "
                "of its own. Call model.eval() (and keep track_running_stats=True)."
            )
        if isinstance(module, _InstanceNorm) and module.training and module.track_running_stats:
            raise ModelError(
                f"'{name}' changes its running statistics in training mode. Call model.eval()."
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ModelError(
                f"'{name}' is dropout in training mode, so gradients are random. Call model.eval()."
            )
        if isinstance(module, nn.RNNBase) and module.training and module.dropout > 0:
            raise ModelError(
                f"'{name}' applies dropout in training mode, so gradients are random. "
                "Call model.eval()."
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise ModelError(
                f"'{name}' has max_norm, which changes its weights in the forward pass. "
                "Renormalise once and set max_norm=None."
            )


def selected_parameters(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The named parameters.

    Args:
        model: that owns them.
        names: of parameters that were trainable when the blocks were formed.

    Returns:
        The parameters by name.

    Raises:
        ModelError: if any was frozen or removed since, or belongs to an adapter that takes no part.
    """
    names = list(names)
    check_adapters(model, names)
    every = dict(model.named_parameters())
    gone = [name for name in names if name not in every or not every[name].requires_grad]
    if gone:
        raise ModelError(
            f"Parameters were frozen or removed after their blocks were formed: {', '.join(gone)}. "
            "Build a new influence model, or restore them."
        )
    return {name: every[name] for name in names}


def rows_dtype(parameters: Iterable[Tensor]) -> torch.dtype:
    """The dtype of rows: float64 if any of the parameters is, otherwise float32."""
    wide = any(p.dtype == torch.float64 for p in parameters)
    return torch.float64 if wide else torch.float32


@contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """The settings under which gradients are computed, whatever those of the caller.

    Args:
        model: about to be differentiated.

    Yields:
        Nothing.

    Raises:
        OutOfMemoryError: if the device has too little memory, with advice.
    """
    devices = devices_of(model)
    card = next((device for device in devices if device.type == "cuda"), None)
    try:
        with (
            nullcontext() if card is None else _recurrence_without_cudnn(model, card),
            preserved_rng(*devices),
            unpacked(model),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    except torch.cuda.OutOfMemoryError as error:
        error.add_note(SMALLER)
        raise


@contextmanager
def _recurrence_without_cudnn(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Without cuDNN, which differentiates recurrent layers in training mode only, and once."""
    if device.type != "cuda" or not any(isinstance(m, nn.RNNBase) for m in model.modules()):
        yield
        return
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def preserved_rng(*devices: torch.device) -> Iterator[None]:
    """Restores the state of torch's global random number generators on leaving.

    Args:
        devices: whose generators are restored beside the CPU's.

    Yields:
        Nothing.
    """
    cards = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(devices=cards):
        yield
