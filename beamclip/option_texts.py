"""The text of each option: the docstring below its field, which --help shows.

An option whose text begins with "Required." is None or () until it is given, which `check_required` refuses.
"""

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from beamclip.errors import InputError

REQUIRED = "Required."
"""First word of the text of an option that its command cannot do without."""


@cache
def option_texts(section: type) -> dict[str, str]:
    """Return the docstring of each option of a section, base class included, each as one line."""
    base = section.__base__
    texts = option_texts(base) if base is not None and is_dataclass(base) else {}
    return texts | _class_texts(section.__module__)[section.__name__]


def is_required(section: type, name: str) -> bool:
    """Whether a command cannot do without this option."""
    return option_texts(section)[name].startswith(REQUIRED)


def check_required(
    config: Any, also: Mapping[str, Any] | None = None, hint: str = "--help lists all options."
) -> None:
    """Refuse a configuration that lacks required options, all of them in one message.

    Args:
        config: a dataclass of options; an option that was not given is None or ().
        also: flag -> value of further options that this command requires, from sections that commands share.
        hint: last sentence of the message.

    Raises:
        InputError: options are missing.
    """
    section: type = type(config)
    required = [name for name in option_texts(section) if is_required(section, name)]
    given = {f"--{name.replace('_', '-')}": getattr(config, name) for name in required} | dict(also or {})
    missing = [flag for flag, value in given.items() if value in (None, ())]
    if missing:
        *first, last = missing
        flags = f"{', '.join(first)} and {last} are" if first else f"{last} is"
        raise InputError(f"{flags} required. {hint}")


@cache
def _class_texts(module: str) -> dict[str, dict[str, str]]:
    """Return class -> option -> text, in one pass over a module's source instead of one for each class."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            field.target.id: " ".join(str(text.value.value).split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
