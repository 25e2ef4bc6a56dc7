"""The packages of the extras [hf], [quantized] and [diffusers], imported when they are needed."""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRAS = {"bitsandbytes": "quantized", "diffusers": "diffusers", "PIL": "diffusers"}
"""Which packages are not in the extra [hf]."""

KERNELS = "bitsandbytes.backends.cpu.ops"
"""The logger that warns of a kernel, for inference alone, when peft is imported on some CPUs."""


def imported(name: str) -> Any:
    """A module of an optional package.

    Args:
        name: of the module.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: if it is not installed; says what to install.
    """
    package = name.partition(".")[0]
    logging.getLogger(KERNELS).addFilter(_is_of_use)  # which is there once, however often added
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # something inside is broken
        extra = EXTRAS.get(package, "hf")
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install 'pydvl-datainf[{extra}]'",
            name=error.name,
        ) from None


def check_extra() -> None:
    """Checks that the packages of the extra [hf] that every job needs are installed.

    Raises:
        ModuleNotFoundError: if one is not; says what to install.
    """
    for name in ("pydantic", "yaml", "transformers", "peft"):
        if find_spec(name) is None:
            imported(name)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")
