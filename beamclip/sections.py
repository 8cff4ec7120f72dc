"""Sort the options of a configuration file, given inside their section or outside of all, into sections.

Names are unique within a command, so `lr: 1e-3` and `optim: {lr: 1e-3}` say the same.
"""

import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from beamclip.errors import InputError
from beamclip.spelling import did_you_mean

MOST_SHOWN = 80
"""Characters that messages show of a value that does not fit."""


def in_sections(
    config_class: Any, content: dict[str, Any], source: str, *, not_in_files: Collection[str] = ()
) -> dict[str, Any]:
    """Return the content with every option in its own section, wherever it was written.

    Args:
        config_class: a dataclass whose fields are options, or dataclasses of options: the sections.
        content: option or section -> value.
        source: named in the messages.
        not_in_files: options that make no sense in a file.

    Raises:
        InputError: an option is unknown, in the wrong section, given twice or in `not_in_files`; the message
            names its path.
    """
    types = typing.get_type_hints(config_class)
    sections = [item.name for item in fields(config_class) if is_dataclass(types[item.name])]
    homes: dict[str, str] = {item.name: "" for item in fields(config_class) if item.name not in sections}
    homes |= {option.name: section for section in sections for option in fields(types[section])}
    placed: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for section, name, value in _written(content, sections):
        path = f"{section}.{name}" if section else name
        if name not in homes or (section and homes[name] != section):
            raise InputError(f"{source}: {path}{_why_not(name, value, sections, homes)}")
        if name in not_in_files:
            raise InputError(f"{source}: {path}: cannot be set in a file. Give it on the command line.")
        if name in seen:
            raise InputError(f"{source}: given twice, as {seen[name]} and as {path}. Leave one out.")
        seen[name] = path
        (placed.setdefault(homes[name], {}) if homes[name] else placed)[name] = value
    return placed


def _written(content: dict[str, Any], sections: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield section ("" outside of all), name and value of each option; tau-student is tau_student."""
    for key, value in content.items():
        name = str(key).replace("-", "_")
        # `student` is a section and an option in it.
        if name in sections and (isinstance(value, dict) or value is None):
            for option, own in (value or {}).items():
                yield name, str(option).replace("-", "_"), own
        else:
            yield "", name, value


def _why_not(name: str, value: Any, sections: Sequence[str], homes: dict[str, str]) -> str:
    if name in homes:
        place = f"in the section {homes[name]}" if homes[name] else "outside of all sections"
        return f": no such option. {name} belongs {place}."
    if name in sections:
        return f": {repr(value)[:MOST_SHOWN]} does not fit. It is a section: give a mapping of its options."
    hint = did_you_mean(name, [*homes, *sections], "--help lists all options.")
    return f": no such option. {hint}"
