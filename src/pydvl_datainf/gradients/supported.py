"""Which models have per-sample gradients that can be seen from outside."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from pydvl_datainf.errors import ModelError
from pydvl_datainf.gradients.adapters import check_adapters

SMALLER = "To need less memory, lower batch_size, or for texts max_tokens."
"""What helps where a device has too little memory for the gradients of a batch."""


def check_model(model: nn.Module) -> None:
    """Checks that the layers of a model can be watched and that it sits on one device.

    Args:
        model: about to be differentiated.

    Raises:
        ModelError: if it is compiled, scripted, wrapped for several devices, or spread over them,
            or if its adapters are disabled.
    """
    check_adapters(model)
    for name, module in model.named_modules():
        kind, where = type(module).__name__, f" ('{name}')" if name else ""
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ModelError(
                f"The model{where} is compiled, which hides its layers. Pass the original: "
                "model._orig_mod, or a copy on which .compile() was not called."
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"The model{where} is scripted. Pass the Python module it came from.")
        if kind in ("DataParallel", "DistributedDataParallel"):
            raise ModelError(f"The model{where} is wrapped in {kind}. Pass model.module.")
        if kind == "FullyShardedDataParallel" or kind.startswith("FSDP"):
            raise ModelError(
                f"The model{where} is sharded ({kind}): no process sees a whole gradient. Gather "
                "it into a plain module on one device."
            )
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1 or "meta" in devices:
        raise ModelError(
            f"The parameters of the model are on {', '.join(devices)}; they must all be on one "
            "device that holds data. Load it without a device map, or move it by model.to(device)."
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
def differentiating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The settings under which gradients are computed, whatever those of the caller.

    Args:
        model: about to be differentiated.
        device: of the model.

    Yields:
        Nothing.

    Raises:
        OutOfMemoryError: if the device has too little memory, with advice.
    """
    try:
        with (
            _recurrence_without_cudnn(model, device) if device.type == "cuda" else nullcontext(),
            preserved_rng(device),
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
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restores the state of torch's global random number generators on leaving.

    Args:
        device: whose generator is restored beside the CPU's.

    Yields:
        Nothing.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
