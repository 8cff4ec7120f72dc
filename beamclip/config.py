"""Configurations, which are frozen dataclasses of options: read from YAML, checked, written, and flattened.

The options of each command are defined in `commands.options`.
"""

import dataclasses
import errno
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from beamclip.addresses import lacks_secrets, without_secrets
from beamclip.errors import InputError
from beamclip.files import read_yaml, write_whole
from beamclip.models.address import absolute_address
from beamclip.places import TORCHVISION, absolute
from beamclip.sections import MOST_SHOWN, in_sections
from beamclip.storage import storage

Config = TypeVar("Config")

UNRECORDED = ("config", "resume")
"""Fields that say where values come from; they are not recorded themselves."""
ADDRESSES = frozenset(
    (
        "data",
        "folder",
        "teacher",
        "more_teachers",
        "vision_teachers",
        "init",
        "towards",
        "eval_data",
        "val_data",
        "train_data",
        "context_data",
        "urls",
        "out",
        "baseline",
    )
)
"""Options of type str that may hold a path; other paths have the type Path."""
MOST_CONFIG_BYTES = 1 << 20


def read_config(config_class: type[Config], path: Path) -> Config:
    """Read a configuration from a YAML file; options that it leaves out have their defaults.

    Raises:
        InputError: the file cannot be read or is not a YAML mapping; or as `parse_config`.
    """
    content = read_yaml(path, MOST_CONFIG_BYTES)
    if content is not None and not isinstance(content, dict):
        kind = "text" if isinstance(content, str) else type(content).__name__
        raise InputError(f"{path}: holds a {kind}. A mapping of options to values is needed.")
    return parse_config(config_class, content or {}, str(path))


def parse_config(config_class: type[Config], content: dict[str, Any], source: str) -> Config:
    """Build a configuration from nested mappings; an option may stand in its section or outside of all.

    Args:
        content: values, or the texts that stand for them on the command line: "1e-3" is a number where the
            option takes one, and a text where it takes a text.
        source: named in the messages.

    Raises:
        InputError: a key is unknown or given twice, or a value does not fit; the message names the key.
    """
    placed = in_sections(config_class, content, source, not_in_files=UNRECORDED)
    return _validated(config_class, placed, source)


def with_options(config: Config, options: Mapping[str, Any], source: str) -> Config:
    """Return the configuration with some options set, as keywords in Python give them.

    Args:
        options: by their own names, without sections; as in a file, a text may stand for a number. A single
            value stands for a list of one, and a Path for its text.
        source: named in the messages.

    Raises:
        InputError: as `parse_config`.
    """
    config_class: type[Config] = type(config)
    placed = in_sections(config_class, {name: _as_texts(value) for name, value in options.items()}, source)
    content = dataclasses.asdict(config)  # type: ignore[call-overload]
    hints = typing.get_type_hints(config_class, include_extras=True)
    for name, value in placed.items():
        if is_dataclass(hints[name]):
            of_section = typing.get_type_hints(hints[name], include_extras=True)
            content[name] |= {own: _listed(given, of_section[own]) for own, given in value.items()}
        else:
            content[name] = _listed(value, hints[name])
    return _validated(config_class, content, source)


def _as_texts(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_as_texts(each) for each in value]
    return value


def _listed(value: Any, hint: Any) -> Any:
    """Return a list of the value if the option takes several, and this is a single one."""
    kind = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
    several = typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is ...
    return [value] if several and not isinstance(value, list) else value


def _validated(config_class: type[Config], content: dict[str, Any], source: str) -> Config:
    try:
        return pydantic.TypeAdapter(config_class).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        refused = first.get("ctx", {}).get("error")
        if isinstance(refused, InputError):
            raise InputError(f"{source}: {f'{path}: ' if path else ''}{refused}") from error
        given = repr(first["input"])[:MOST_SHOWN]
        raise InputError(f"{source}: {path}: {given} does not fit. {first['msg']}.") from error


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute paths; what does not exist, or is no path, stays as it is."""
    changed: dict[str, Any] = {}
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        if is_dataclass(value):
            changed[item.name] = with_absolute_paths(value)
        elif isinstance(value, Path) or item.name in ADDRESSES:
            each = tuple(map(_absolute, value)) if isinstance(value, tuple) else _absolute(value)
            changed[item.name] = each
        elif item.name == "model" and os.path.isfile(value or ""):
            # A folder that has the name of a model is not what was meant.
            changed[item.name] = _absolute(value)
    return replace(config, **changed)  # type: ignore[type-var]


def _absolute(address: Any) -> Any:
    if address is None or "://" in str(address):
        return address
    if isinstance(address, str):
        return absolute(address) if address.startswith(TORCHVISION) else absolute_address(address)
    path = address.expanduser()
    return path.resolve() if path.exists() else address


def check_values(config: Any) -> None:
    """Refuse values that have the right type but cannot be meant.

    Raises:
        InputError: a number is not finite or exceeds 64 bits, an address lacks the secrets that were left out
            of it, or the name of a file is too long.
    """
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            check_values(value)
            continue
        for each in value if isinstance(value, tuple) else (value,):
            is_path = isinstance(each, Path) or item.name in ADDRESSES
            problem = _problem(each) or (_problem_of_path(each) if is_path else None)
            if problem:
                flag = f"--{item.name.replace('_', '-')}"
                raise InputError(f"{flag} {str(each)[:MOST_SHOWN]}: {problem} {flag}.")


def _problem(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number. Give one with"
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "is more than 64 bits hold. Give a smaller number with"
    if isinstance(value, (str, Path)) and lacks_secrets(str(value)):
        return "was stored without its user name, password or signature. Give the whole address with"
    return None


def _problem_of_path(value: Any) -> str | None:
    try:
        os.stat(value or "")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "is too long for the name of a file. Give a shorter one with"
    return None


def plain(config: Any) -> dict[str, Any]:
    """Return the configuration as nested mappings of YAML's own types, without the secrets in addresses."""
    content = dataclasses.asdict(config)
    return {key: _plain(value) for key, value in content.items() if key not in UNRECORDED}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return without_secrets(str(value)) if isinstance(value, (str, Path)) else value


def write_config(config: Any, path: Path) -> None:
    """Write a configuration so that `--config` reads it back as it is, in any folder."""
    write_whole(path, config_text(config))


def portable(config: Config) -> Config:
    """Return the configuration with paths that hold in any folder.

    On a cluster with a storage these are the relative ones: they are looked up there, or in the files that
    come with a job, which lie in another folder each time.
    """
    return config if storage() else with_absolute_paths(config)


def config_text(config: Any) -> str:
    """Return the YAML text that `write_config` writes."""
    return yaml.safe_dump(plain(portable(config)), sort_keys=False, allow_unicode=True)


def parameters(config: Any) -> dict[str, Any]:
    """Return every option by its own name, without sections, as MLflow records them."""
    flat: dict[str, Any] = {}
    for key, value in plain(portable(config)).items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat
