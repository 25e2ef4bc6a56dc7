"""What blocks are called where people read: paths without the parts that all models share."""

import re
from collections import Counter
from collections.abc import Sequence

ADAPTER = re.compile(r"\.(lora_\w+|hada_\w+|lokr_\w+|ia3_\w+|vera_\w+)(?:\.(\w+))?$")
"""A peft matrix, and the name of its adapter."""


def block_labels(names: Sequence[str]) -> list[str]:
    """Shortens the names of blocks for display; elsewhere a block is called by its path.

    The wrappers of peft and a prefix that all blocks share, up to numbered layers, are left out,
    and a matrix of an adapter stands apart from its layer. Where two blocks would be called the
    same, both keep their path.

    Args:
        names: paths of modules or parameters.

    Returns:
        A label for each, all different if the names are.

    Examples:
        >>> layer = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.default"
        >>> block_labels([layer.format(0), layer.format(1)])
        ['layers.0.self_attn.q_proj · lora_A', 'layers.1.self_attn.q_proj · lora_A']
    """
    short = [_without_wrappers(name) for name in names]
    prefix = _shared_prefix(short)
    labels = [_parted(name[len(prefix) :]) for name in short]
    counts = Counter(labels)
    return [
        label if counts[label] == 1 else name for label, name in zip(labels, names, strict=True)
    ]


def _without_wrappers(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    return re.sub(r"\.modules_to_save\.\w+", "", name)


def _shared_prefix(names: Sequence[str]) -> str:
    """The modules that all paths share, up to the one that holds numbered layers."""
    split = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if all(part.isdigit() for part in parts):
            shared = shared[:-1]
            break
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def _parted(name: str) -> str:
    found = ADAPTER.search(name)
    if found is None:
        return name
    matrix, adapter = found.groups()
    named = "" if adapter in (None, "default", "weight") else f" ({adapter})"
    return f"{name[: found.start()]} · {matrix}{named}"
