"""Packages whose names are imported when they are used first: torch alone takes seconds."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def imported_when_used(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a package.

    Args:
        package: its name.
        homes: for each module within it, by its name from there, the names that it has of it.

    Returns:
        A function that imports a name's module.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)  # so that this is asked once
        return value

    return __getattr__
