"""Packages that are commands as well: `beamclip.ingest(urls=..., out=...)` beside `beamclip.ingest.config`.

Python gives a package the attribute `ingest` as soon as anything imports a module below beamclip/ingest, so
a function of that name would vanish. The package itself is called instead.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package whose call runs the command of its name."""

    def __call__(self, **options: Any) -> Any:
        """Run the command; see the function of this name in beamclip.api.commands."""
        return self._command(**options)

    @property
    def _command(self) -> Callable[..., Any]:
        name = self.__name__.rpartition(".")[2]
        command: Callable[..., Any] = getattr(importlib.import_module("beamclip.api.commands"), name)
        return command

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._command)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._command.__doc__

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Ray pickles the functions of a notebook together with the packages that they name.
        return importlib.import_module, (self.__name__,)


def make_callable(package: str) -> None:
    """Let a package, given by its `__name__`, be called as the command of its name."""
    sys.modules[package].__class__ = CallableRoom
