"""Moves to a device what losses and objectives hold, such as the weights of classes."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pydvl_datainf.objectives.output_loss import OutputLoss


def move(loss: Any, device: torch.device) -> None:
    """Moves the modules and tensors that a loss or an objective holds, in place.

    What a function takes from around it stays where it is.

    Args:
        loss: a module, or an object whose attributes are looked at.
        device: where to.
    """
    if isinstance(loss, nn.Module):
        loss.to(device)
    slots = [name for kind in type(loss).__mro__ for name in getattr(kind, "__slots__", ())]
    for name in [*getattr(loss, "__dict__", ()), *slots]:
        held = getattr(loss, name, None)
        moved = _moved(held, device)
        if moved is not held:
            object.__setattr__(loss, name, moved)  # also of frozen dataclasses
    if isinstance(loss, OutputLoss):
        move(loss.loss, device)


def _moved(held: Any, device: torch.device) -> Any:
    if isinstance(held, nn.Module):
        return held.to(device)
    if isinstance(held, Tensor):
        # MPS has none, and numbers of the CPU go with tensors there.
        return held if (device.type, held.dtype) == ("mps", torch.float64) else held.to(device)
    if isinstance(held, partial):  # which is not changed, but made anew
        named = {name: _moved(value, device) for name, value in held.keywords.items()}
        args = (_moved(value, device) for value in held.args)
        return partial(_moved(held.func, device), *args, **named)
    return held
