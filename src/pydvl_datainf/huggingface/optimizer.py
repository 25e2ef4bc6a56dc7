"""The state of Adam that a transformers `Trainer` left in a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pydvl_datainf.errors import OptimizerError
from pydvl_datainf.gradients import AdamPreconditioner
from pydvl_datainf.huggingface.extra import imported
from pydvl_datainf.huggingface.models import loading

FILE = "optimizer.pt"
OWN = (
    "If the optimizer was made in another way than by transformers' Trainer, keep it in memory, "
    "and use AdamPreconditioner.from_optimizer."
)


def read_adam(checkpoint: str | Path, model: nn.Module) -> AdamPreconditioner:
    """Reads by what Adam would divide the steps of a model's parameters.

    The file numbers parameters. Which they are follows from how a Trainer groups those that require
    gradients: first those with weight decay, then the others, each in the order of the model.

    Args:
        checkpoint: folder that a Trainer saved, such as "checkpoint-500", which holds optimizer.pt.
        model: that was trained, with the same parameters requiring gradients as in training.

    Returns:
        What `preconditioner` of the influence models takes.

    Raises:
        OptimizerError: if there is no such file, it is not that of torch's Adam or AdamW, or its
            parameters are not in number and shapes those of the model.
    """
    path = checked_file(checkpoint)
    with loading("the state of the optimizer in", str(path)):
        # Mapped, since two thirds of it are of no use here; weights_only, since it is a pickle.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    groups = _groups(found, path)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    names = _as_grouped(model)
    held, expected = ([len(group) for group in each] for each in (groups, names))
    if held != expected:
        raise OptimizerError(
            f"{path} holds groups of {_counted(held)} parameters, and a Trainer groups those of "
            f"this model that require gradients into {_counted(expected)}, with and without weight "
            "decay. Let the same parameters require gradients as in training, and take the "
            f"checkpoint of this model. {OWN}"
        )
    adam = AdamPreconditioner.from_states(
        (name, *state)
        for group, of_group in zip(groups, names, strict=True)
        for state, name in zip(group, of_group, strict=True)
    )
    for name, scale in adam.scales.items():
        if scale.shape != shapes[name]:
            raise OptimizerError(
                f"{path} holds a state of the shape {tuple(scale.shape)} where '{name}' would be, "
                f"which has {tuple(shapes[name])}. Take the checkpoint of this model, with the "
                f"same parameters requiring gradients as in training. {OWN}"
            )
    return adam


def checked_file(checkpoint: str | Path) -> Path:
    """The file of the optimizer in a checkpoint.

    Args:
        checkpoint: a folder.

    Returns:
        Its path.

    Raises:
        OptimizerError: if it is not there.
    """
    path = Path(checkpoint, FILE)
    if not path.is_file():
        raise OptimizerError(
            f"There is no file {path}. A Trainer leaves it in the checkpoint-... folders in its "
            "output_dir, but not with save_only_model=True, DeepSpeed or FSDP. Name such a folder "
            "as the model or adapter, or leave the preconditioner out."
        )
    return path


State = tuple[Mapping[str, Any], Mapping[str, Any]]


def _groups(found: Any, path: Path) -> list[list[State]]:
    """For each group of parameters, for each parameter the group's settings and its state."""
    try:
        states, groups = found["state"], found["param_groups"]
        return [[(group, states.get(i, {})) for i in group["params"]] for group in groups]
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise OptimizerError(
            f"{path} is not what an optimizer of torch saves: {type(error).__name__} {error}. Take "
            "the checkpoint that a Trainer saved."
        ) from error


def _as_grouped(model: nn.Module) -> list[list[str]]:
    """Names of the parameters that require gradients, as `Trainer.create_optimizer` groups them."""
    trainer = imported("transformers").Trainer
    decayed = set(trainer.get_decay_parameter_names(None, model))  # nothing of itself is used
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return [[n for n in names if (n in decayed) is decays] for decays in (True, False)]


def _counted(sizes: list[int]) -> str:
    return " + ".join(map(str, sizes)) or "no"
