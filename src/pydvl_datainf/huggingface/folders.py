"""Model folders, looked through before anything in them is loaded: what is damaged, and pickles."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydvl_datainf.errors import ModelError
from pydvl_datainf.huggingface.extra import imported

Kind: TypeAlias = Literal["model", "adapter_model", "diffusion_pytorch_model"]
"""What a folder's weights are called, as transformers, peft and diffusers save them."""

PICKLED = {"model": "pytorch_model"}
"""What the same weights are called as a pickle, where that is something else."""

SETTINGS = (
    "adapter_config.json",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "model_index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "scheduler_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""The files of a folder that loaders read, each an object in JSON."""

AGAIN = "Copy or download it again, or save the model again."
PICKLE = (
    "a pickle, which can run code of its own when it is read. Save the weights as safetensors "
    "(load them where they are trusted and call save_pretrained again), or, if you trust whoever "
    "made the file, say trust_pickle: true."
)

FROM_HUB = " From the hub: "
"""Between what is no folder here and what became of it as a name on the hub."""


def absence(path: Path, what: str = "folder") -> str:
    """Says that a file or folder is not there, and what there is of a like name.

    Args:
        path: of what is missing.
        what: it would be.

    Returns:
        A sentence, or two.
    """
    told, lacking = f"There is no {what} {path}.", path
    with suppress(OSError):
        while not lacking.parent.exists():
            lacking = lacking.parent
        near = get_close_matches(lacking.name, sorted(os.listdir(lacking.parent)))
        if near:
            told += f" Did you mean {' or '.join(str(lacking.with_name(name)) for name in near)}?"
    return told


def check_folder(folder: Path, kind: Kind, trust_pickle: bool) -> None:
    """Checks that a folder's settings are readable and that its weights are whole safetensors.

    Of safetensors the header is read, which tells how long the file must be; not the numbers.

    Args:
        folder: that is there.
        kind: of its weights.
        trust_pickle: whether weights may be pickles.

    Raises:
        ModelError: if a file is damaged, missing or a pickle; names it, with cause and remedy.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file. Name the folder that it is in.")
    for path in folder.iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():  # reading may never end
            raise ModelError(f"{path} is a pipe, a socket or a device. Put a file in its place.")
    check_settings(folder)
    for path in _weights(folder, kind, trust_pickle):
        check_safetensors(path)


def check_settings(folder: Path) -> None:
    """Checks that the settings of a model, a tokenizer or the like are objects in JSON.

    Args:
        folder: that is there.

    Raises:
        ModelError: if one is not; names it.
    """
    for name in SETTINGS:
        if (folder / name).is_file():
            read_settings(folder / name)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads one file of settings.

    Args:
        path: of the file.

    Returns:
        What it says.

    Raises:
        ModelError: if it cannot be read or is something else than an object in JSON.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}. {AGAIN}") from error
    if not isinstance(settings, dict):
        raise ModelError(
            f"{path} is damaged: it must hold an object, {{...}}, and holds a "
            f"{type(settings).__name__}. {AGAIN}"
        )
    return settings


def check_safetensors(path: Path) -> None:
    """Checks that a file of weights is there and whole.

    Args:
        path: of the file.

    Raises:
        ModelError: if it is not.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}. {AGAIN}")
    safetensors = imported("safetensors")
    try:
        with safetensors.safe_open(path, "pt"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file: {error}. {AGAIN}") from error


def _weights(folder: Path, kind: Kind, trust_pickle: bool) -> Iterator[Path]:
    """The safetensors files from which a folder's weights are loaded."""
    whole, index = folder / f"{kind}.safetensors", folder / f"{kind}.safetensors.index.json"
    if whole.is_file():
        yield whole
    elif index.is_file():
        yield from _shards(index, trust_pickle)
    elif pickles := sorted(folder.glob(f"{PICKLED.get(kind, kind)}.bin*")):
        if not trust_pickle:
            raise ModelError(f"{pickles[0]} is {PICKLE}")
    elif not any(
        path.is_file() for path in folder.glob("*.safetensors")
    ):  # those that config.json names are left to loading
        raise ModelError(f"{folder} holds no weights: there is no {whole.name}. {AGAIN}")


def _shards(index: Path, trust_pickle: bool) -> Iterator[Path]:
    shards = read_settings(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{index} is damaged: its weight_map names no file by tensor. {AGAIN}")
    for name in sorted(set(names)):
        if Path(name).name != name:
            raise ModelError(f"{index} names {name!r}, which is not beside it. {AGAIN}")
        if name.endswith(".safetensors"):
            yield index.with_name(name)
        elif not trust_pickle:
            raise ModelError(f"{index} names {name}, {PICKLE}")
