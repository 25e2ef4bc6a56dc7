"""Where the files are that a job names: paths in a job file are meant from its folder on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydvl_datainf.errors import JobError, ModelError
from pydvl_datainf.huggingface.folders import FROM_HUB, absence


def path_in(folder: Path, name: str) -> str:
    """The absolute path of a file or folder, there or not; URLs as they are.

    Args:
        folder: from which relative paths are meant.
        name: as the job has it.

    Returns:
        A path or a URL.

    Raises:
        JobError: if no path can be called that: links that lead in a circle, NUL in the name.
    """
    if "://" in name:
        return name
    try:
        return str((folder / Path(name).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"{name!r} names no file or folder: {error}.") from error


def data_in(folder: Path, name: str) -> str:
    """The absolute path of data, there or not; URLs as they are.

    A link keeps its own name where that says of what kind the data is: a cache may call the file
    otherwise that the link leads to.

    Args:
        folder: from which relative paths are meant.
        name: as the job has it.

    Returns:
        A path or a URL.
    """
    path = path_in(folder, name)  # is refused if it leads nowhere
    named = folder / Path(name).expanduser()
    is_kept = "://" not in name and named.suffix != "" and named.is_symlink()
    return str(named.parent.resolve() / named.name) if is_kept else path


def file_in(folder: Path, name: str) -> Path:
    """The absolute path of data.

    Args:
        folder: from which relative paths are meant.
        name: as the job has it.

    Returns:
        A path.

    Raises:
        JobError: if it is a URL, from which data is not read.
    """
    if "://" in name:
        raise JobError(f"{name} is a URL, and data is read from files. Download it, and name that.")
    return Path(data_in(folder, name))


def model_in(folder: Path, name: str) -> str:
    """The absolute path of a model or adapter, or its name on the hub.

    Args:
        folder: from which relative paths are meant.
        name: as the job has it.

    Returns:
        A path if one is there or can only be meant, otherwise the name.
    """
    path = path_in(folder, name)
    is_path = Path(path).exists() or name.startswith((".", "/", "~"))
    return path if is_path else name


@contextmanager
def absent_folders_named(folder: Path, *names: str | None) -> Iterator[None]:
    """Says of what could not be loaded from the hub that it is no folder here.

    Args:
        folder: from which relative paths are meant.
        names: of models and adapters, as the job has them.

    Yields:
        Nothing.

    Raises:
        ModelError: if one was raised inside.
    """
    try:
        yield
    except ModelError as error:
        for name in names:
            on_hub = name is not None and model_in(folder, name) == name
            if on_hub and f" {name}:" in str(error):
                told = absence(Path(path_in(folder, str(name))))
                # Loading may have missed it in the current folder, from which the job means none.
                raise ModelError(told + FROM_HUB + str(error).split(FROM_HUB)[-1]) from error
        raise


PLACES = {
    "model": model_in,
    "adapter": model_in,
    "train": data_in,
    "test": data_in,
    "out": path_in,
}
"""The fields that name a place, and how."""


def anchored(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line, whose paths are meant from the current folder on.

    Args:
        options: fields of a job; None = not given.

    Returns:
        The same with absolute paths.
    """
    return {
        name: PLACES[name](Path(), value) if name in PLACES and value is not None else value
        for name, value in options.items()
    }
