"""Which objective it is, in words: what is told of one, and compared."""

import inspect
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from pydvl_datainf.fingerprint import as_bytes
from pydvl_datainf.objectives.output_loss import OutputLoss
from pydvl_datainf.objectives.protocol import Objective


def described(objective: Objective) -> str:
    """Name, settings and a checksum of the source, where there is one: equal for equal objectives.

    Args:
        objective: any.

    Returns:
        A line, as in the fingerprints of runs.
    """
    return _words(objective.loss if isinstance(objective, OutputLoss) else objective)


def _words(named: Any) -> str:
    if isinstance(named, partial):
        given = dict(enumerate(named.args)) | named.keywords
        return f"{_words(named.func)} with ({', '.join(_settings(given))})"
    code = named if inspect.isroutine(named) else type(named)
    name = f"{code.__module__}.{code.__qualname__}"
    told = ", ".join(_settings(_held(code) if code is named else _attributes(named)))
    settings = "" if code is named and not told else f"({told})"
    try:
        source = zlib.crc32(inspect.getsource(code).encode())
    except (OSError, TypeError):
        return name + settings
    return f"{name}{settings} [{source:08x}]"


def _held(function: Any) -> dict[str, Any]:
    """What a function takes from around it, such as the weights of classes."""
    if not inspect.isfunction(function):
        return {}
    around = inspect.getclosurevars(function)
    # The defaults of others stand in their source.
    made_here = inspect.signature(function).parameters if "<" in function.__qualname__ else {}
    defaults = {name: p.default for name, p in made_here.items() if p.default is not p.empty}
    return {**around.globals, **around.nonlocals, **defaults}


def _attributes(objective: Any) -> dict[str, Any]:
    """Attributes; of a module also its tensors, such as the weights of classes, and its parts."""
    values = dict(getattr(objective, "__dict__", {}))
    if isinstance(objective, nn.Module):
        own = (objective.named_parameters, objective.named_buffers)
        values |= {name: tensor for named in own for name, tensor in named(recurse=False)}
        values |= dict(objective.named_children())
    return values


def _settings(values: Mapping[Any, Any]) -> list[str]:
    named = sorted((str(name), value) for name, value in values.items() if str(name)[0] != "_")
    return [f"{name}={told}" for name, value in named if (told := _told(value))]


def _told(value: Any) -> str | None:
    """A setting as text: simple values, tuples of them, modules, and checksums of tensors."""
    if isinstance(value, nn.Module):
        return _words(value)
    if isinstance(value, Tensor):
        return f"{zlib.crc32(as_bytes(value)):08x}"
    inner = value if isinstance(value, tuple) else (value,)
    is_simple = all(isinstance(v, str | int | float | bool | None) for v in inner)
    return repr(value) if is_simple else None
