"""Names of a package that are imported at their first use: `import beamclip` must not import torch."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

MODULE = ""
"""Stands for a module of the package itself, instead of a name in a module."""


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its `__name__`.
        homes: name -> the module of the package that defines it, or MODULE.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if homes[name] == MODULE:
            return importlib.import_module(f"{package}.{name}")
        found = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        # From now on Python finds it without asking.
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names
