"""How `--help` shows options: docstrings as flowing text, ranges, and defaults that are not empty."""

import typing
from dataclasses import fields, is_dataclass
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from beamclip.option_texts import REQUIRED, is_required, option_texts
from beamclip.places import Places
from beamclip.ranges import ranges_of


def option_registry() -> ConstructorRegistry:
    """Return the rules by which tyro reads our sections of options, for `tyro.cli(..., registry=...)`."""
    registry = ConstructorRegistry()
    registry.struct_rule(_section_rule)
    return registry


def _section_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    if not is_dataclass(info.type) or not info.type.__module__.startswith("beamclip."):
        return None
    hints = typing.get_type_hints(info.type, include_extras=True)
    options = []
    for item in fields(info.type):
        default, kind = getattr(info.default, item.name), hints[item.name]
        if is_dataclass(kind):
            options.append(StructFieldSpec(item.name, cast(type, kind), default))
            continue
        hint = partial(_hint, info.type, item.name, default)
        shown = tyro.conf.arg(metavar=_metavar(kind), help_behavior_hint=hint)
        text = partial(_text, info.type, item.name)
        options.append(StructFieldSpec(item.name, cast(type, Annotated[kind, shown]), default, text))
    return StructConstructorSpec(info.type, tuple(options))


def _text(section: type, name: str) -> str:
    return option_texts(section)[name].removeprefix(REQUIRED).strip()


def _metavar(kind: Any) -> str | None:
    """Show the type as `INT`, or `STR ...` for several; None leaves choices and types of places to tyro."""
    if kind == Places:
        return "PATH|ADDRESS ..."
    repeated = ""
    inner = [part for part in typing.get_args(kind) if part is not NoneType]
    if typing.get_origin(kind) is tuple and inner[-1] is ...:
        repeated = " ..."
    elif typing.get_origin(kind) not in (Union, UnionType) or len(inner) != 1:
        return None
    value = _without_range(inner[0])
    if typing.get_origin(value) is typing.Literal:
        return f"{{{','.join(map(str, typing.get_args(value)))}}}"
    if typing.get_origin(value) is tuple:
        return " ".join(part.__name__.upper() for part in typing.get_args(value))
    return f"{value.__name__.upper()}{repeated}" if value in (int, float, str) else None


def _without_range(kind: Any) -> Any:
    return kind.__origin__ if typing.get_origin(kind) is Annotated else kind


def _hint(section: type, name: str, default: Any, label: str) -> str:
    """What follows the text of an option: range and default. `label` is tyro's text for the default."""
    parts = [str(ranges_of(section)[name]).removeprefix("a number ")] if name in ranges_of(section) else []
    if default is not None and default != ():
        parts.append(f"default: {f'{default:g}' if isinstance(default, float) else label}")
    elif is_required(section, name):
        parts.append("required")
    return f"({'; '.join(parts)})" if parts else ""
