"""The page of all options, made from the dataclasses that define them."""

import typing
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

import tyro

from beamclip.commands.main import COMMANDS
from beamclip.option_texts import REQUIRED, option_texts
from beamclip.places import LocalPath, PathOrAddress, Places
from beamclip.ranges import ranges_of

INTRODUCTION = """# Configuration

Every option of every command: on the command line a flag (`--batch-size 64`), in a `--config` file a key
(`batch_size: 64`), in MLflow a parameter. Flags override the file, which overrides the defaults. This page is
made from the classes that define the options, as `--help` is.
"""
PLACES = {LocalPath: "path", PathOrAddress: "path or address", Places: "paths or addresses"}


def options_page() -> str:
    """Return the page in Markdown: the options of each command, then those that several commands share."""
    parts = [INTRODUCTION]
    sections: dict[str, type] = {}
    for name, command in COMMANDS.items():
        own, shared = _parts_of(command.options)
        sections |= shared
        links = ", ".join(f"[{section}](#{section})" for section in shared)
        parts.append(f"## beamclip {name}\n\n{command.text}\n\n{_table(command.options, own)}")
        parts.append(f"And the options of these sections: {links}.\n" if links else "")
    parts.append("## Sections\n\nA section has the name that it has in `config.yaml`.\n")
    for name, section in sections.items():
        own, _ = _parts_of(section)
        text = " ".join((section.__doc__ or "").split())
        parts.append(f"### {name} {{ #{name} }}\n\n{text}\n\n{_table(section, own)}")
    return "\n".join(parts)


def _parts_of(options: type) -> tuple[list[str], dict[str, type]]:
    """Names of a class's own options, and its sections by their names."""
    marked = typing.get_type_hints(options, include_extras=True)
    kinds = typing.get_type_hints(options)
    names = [field.name for field in fields(options) if not _is_hidden(marked[field.name])]
    own = [name for name in names if not is_dataclass(kinds[name])]
    return own, {name: kinds[name] for name in names if is_dataclass(kinds[name])}


def _is_hidden(kind: Any) -> bool:
    """Whether --help leaves an option out."""
    return tyro.conf.Suppress in getattr(kind, "__metadata__", ())


def _table(options: type, names: list[str]) -> str:
    rows = ["| option | value | default | |", "|---|---|---|---|"]
    kinds = typing.get_type_hints(options, include_extras=True)
    defaults = {field.name: field.default for field in fields(options)}
    for name in names:
        text = option_texts(options)[name]
        allowed = ranges_of(options).get(name)
        value = _kind(kinds[name]) + (f", {str(allowed).removeprefix('a number ')}" if allowed else "")
        default = "required" if text.startswith(REQUIRED) else _default(defaults[name])
        cells = (f"`--{name.replace('_', '-')}`", value, default, text.removeprefix(REQUIRED).strip())
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _kind(kind: Any) -> str:
    """Say in words what an option takes."""
    for place, words in PLACES.items():
        if kind == place:
            return words
    if typing.get_origin(kind) is Annotated:
        return _kind(kind.__origin__)
    inner = [part for part in typing.get_args(kind) if part is not NoneType and part is not ...]
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if typing.get_origin(kind) is tuple:
        repeated = ... in typing.get_args(kind)
        return f"{_kind(inner[0])} ..." if repeated else " ".join(map(_kind, inner))
    if typing.get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    return {bool: "switch", int: "whole number", float: "number", str: "text"}.get(kind, kind.__name__)


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"
