"""Which parameters of a tuned model take part."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, cast

from torch import nn

from pydvl_datainf.errors import BlockError
from pydvl_datainf.huggingface.models import HEADS

REPLACED = ".original_module."
"""In the names of parameters that take no part since an adapter brought others."""

Parameters: TypeAlias = Literal["adapters", "adapters+heads", "all"] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen.

    Args:
        names: of the parameters that take part.
        heads: modules that the adapter trained too, and that take part.
        left_out: modules that the adapter trained too, and that take no part.
    """

    names: tuple[str, ...]
    heads: tuple[str, ...]
    left_out: tuple[str, ...]


def select_parameters(model: nn.Module, which: Parameters = "adapters") -> Selection:
    """Lets the chosen parameters require gradients, and no others. The model is changed.

    Args:
        model: tuned.
        which: "adapters" (the matrices of the active peft adapter, or its tuned prompts),
            "adapters+heads" (and what was trained with it: whole modules, `modules_to_save`, and
            biases), "all", or patterns of parameter names such as "*.layers.11.*".

    Returns:
        What was chosen, and which trained modules were left out.

    Raises:
        BlockError: if the model has no adapter, or a pattern fits no parameter.
    """
    every = {
        name: p
        for name, p in model.named_parameters()
        if p.is_floating_point() and REPLACED not in name
    }
    matrices = _adapters(model)
    trained = [
        name
        for name, p in every.items()
        if (p.requires_grad or HEADS in name) and not f"{name}.".startswith(matrices)
    ]
    heads_of = {name: _module(name) for name in trained} if matrices else {}
    chosen = _chosen(list(every), which, matrices, list(heads_of))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in chosen:
        every[name].requires_grad_(True)
    heads = {module: name in chosen for name, module in heads_of.items()}
    return Selection(
        names=tuple(chosen),
        heads=tuple(module for module, is_in in heads.items() if is_in),
        left_out=tuple(module for module, is_in in heads.items() if not is_in),
    )


def _chosen(
    names: Sequence[str], which: Parameters, matrices: tuple[str, ...], heads: Sequence[str]
) -> list[str]:
    if which == "all":
        return list(names)
    if which in ("adapters", "adapters+heads"):
        wanted = [name for name in names if f"{name}.".startswith(matrices)]
        if not wanted:
            raise BlockError(
                f'parameters="{which}" needs a peft adapter, which the model does not have. Name '
                'the adapter, or choose parameters="all" or patterns such as "classifier.*".'
            )
        also = heads if which == "adapters+heads" else ()
        return [name for name in names if name in {*wanted, *also}]
    if isinstance(which, str):
        raise BlockError(
            f'parameters must be "adapters", "adapters+heads", "all" or a list of patterns, got '
            f"{which!r}."
        )
    for pattern in which:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:3])
            raise BlockError(
                f"No parameter fits the pattern {pattern!r}; their names are {some}, ..."
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in which)]


def _adapters(model: nn.Module) -> tuple[str, ...]:
    """Where the active adapters' matrices are, as peft's layers tell, or the tuned prompts."""
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        return (f"prompt_encoder.{cast(Any, model).active_adapter}.embedding.",)
    return tuple(
        f"{path}.{kind}.{adapter}."
        for path, layer in model.named_modules()
        for kind in getattr(layer, "adapter_layer_names", ())
        for adapter in cast(Any, layer).active_adapters
        if f".{kind}." != HEADS
    )


def _module(name: str) -> str:
    """The module that was trained whole, or the bias."""
    whole = name.partition(HEADS)[0] if HEADS in name else name
    return whole.removeprefix("base_model.model.").replace(".base_layer.", ".")
