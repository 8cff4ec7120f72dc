"""The settings that a sweep tries: options of a distillation by name, each with values or a range.

They are written as on the command line: `tau_teacher=0.01,0.02,0.04` for values, `lr=1e-4..1e-2` for a range.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from beamclip.commands.options import DistillConfig
from beamclip.config import parse_config
from beamclip.errors import InputError
from beamclip.spelling import did_you_mean

SECTIONS = ("student", "prompts", "csm", "feature", "terms", "vision", "stream", "optim")
"""Sections of a distillation's configuration whose options can be varied, as can the seed. The other options
decide what the cache holds, or where things run."""

DEFAULT_SPACE = ("tau_teacher=0.005,0.01,0.02,0.04", "tau_student=0.05,0.1,0.2")
DEFAULT_CONTEXTS = ("num_contexts=0,1,2,4", "anchor_reduce=mean,separate")
"""Added to DEFAULT_SPACE if a context source is given."""

Settings = dict[str, Any]
"""Settings of one trial: option -> value."""


@dataclass(frozen=True)
class Values:
    """An option that takes one of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """An option that takes any number from low to high, evenly on a logarithmic scale."""

    low: float
    high: float


Space = dict[str, Values | Range]


def parse_space(vary: Sequence[str], base: DistillConfig) -> Space:
    """Parse texts such as `tau_teacher=0.01,0.02` into a space; without any, return the default one.

    Args:
        base: the distillation whose options are varied.

    Raises:
        InputError: an option is unknown, cannot be varied or is given twice, or a value does not fit it.
    """
    space: Space = {}
    for text in vary or _default_space(base):
        name, equals, written = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not written.strip():
            raise InputError(f"--vary {text}: write OPTION=VALUE,VALUE or OPTION=LOW..HIGH.")
        if name in space:
            raise InputError(f"--vary {text}: {name} is given twice. Write all its values in one place.")
        space[name] = _read_choice(name, written)
    return space


def _default_space(base: DistillConfig) -> tuple[str, ...]:
    return DEFAULT_SPACE + (DEFAULT_CONTEXTS if base.prompts.context_source != "none" else ())


def _read_choice(name: str, written: str) -> Values | Range:
    _section_of(name)
    low, dots, high = written.partition("..")
    if not dots:
        values = tuple(_read_value(name, value) for value in written.split(","))
        if len(set(values)) < len(values):
            raise InputError(f"--vary {name}={written}: a value is given twice. Leave one out.")
        return Values(values)
    ends = [_read_value(name, end) for end in (low, high)]
    if not all(isinstance(end, float) for end in ends) or not 0 < ends[0] < ends[1]:
        raise InputError(
            f"--vary {name}={written}: a range needs an option that takes any number, and 0 < low < high. "
            "Otherwise list values, separated by commas."
        )
    return Range(*ends)


def _read_value(name: str, written: str) -> Any:
    """Parse a value of the option's own type."""
    value = None if written.strip() in ("", "~", "null") else written.strip()
    # The option may take a list: each value is then a list of one element.
    try:
        return _read_as(name, value)
    except InputError:
        with contextlib.suppress(InputError):
            return _read_as(name, [value])
        raise


def _read_as(name: str, value: Any) -> Any:
    section = _section_of(name)
    content = {section: {name: value}} if section else {name: value}
    read = parse_config(DistillConfig, content, f"--vary {name}")
    return getattr(getattr(read, section) if section else read, name)


def _section_of(name: str) -> str | None:
    """Return the section that an option belongs to; None for an option outside all sections.

    Raises:
        InputError: the option does not exist or cannot be varied.
    """
    places: dict[str, str | None] = {"seed": None}
    for section in SECTIONS:
        options = fields(getattr(DistillConfig(), section))
        places.update({option.name: section for option in options})
    if name not in places:
        hint = did_you_mean(name, places, f"These can be: {', '.join(places)}.")
        raise InputError(f"--vary {name}: no option of that name can be varied. {hint}")
    return places[name]


def applied(base: DistillConfig, settings: Settings) -> DistillConfig:
    """Return `base` with a trial's settings.

    Raises:
        InputError: an option cannot be varied, or its section refuses the value.
    """
    config = base
    for name, value in settings.items():
        section = _section_of(name)
        change = {section: replace(getattr(config, section), **{name: value})} if section else {name: value}
        config = replace(config, **change)
    return config


def read_settings(content: dict[str, Any]) -> Settings:
    """Parse settings that were read from JSON."""
    return {name: _read_as(name, value) for name, value in content.items()}


def combinations(space: Space) -> int | None:
    """Return the number of combinations; None if an option has a range."""
    sizes = [len(choice.values) if isinstance(choice, Values) else 0 for choice in space.values()]
    return math.prod(sizes) or None


def grid(space: Space) -> list[Settings]:
    """Return every combination of the values, the last option varying fastest.

    Raises:
        InputError: an option has a range.
    """
    for name, choice in space.items():
        if isinstance(choice, Range):
            raise InputError(
                f"--grid: {name} has a range ({choice.low:g}..{choice.high:g}), and a grid needs "
                "values. List some, or leave --grid out."
            )
    values = [choice.values for choice in space.values() if isinstance(choice, Values)]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def drawn(space: Space, count: int, seed: int) -> list[Settings]:
    """Draw `count` combinations at random; without ranges, distinct ones, or all if there are fewer."""
    generator = np.random.default_rng(seed)
    total = combinations(space)
    if total is not None:
        every = grid(space)
        return [every[index] for index in generator.permutation(total)[:count].tolist()]
    return [{name: _draw(choice, generator) for name, choice in space.items()} for _ in range(count)]


def _draw(choice: Values | Range, generator: np.random.Generator) -> Any:
    if isinstance(choice, Values):
        return choice.values[int(generator.integers(len(choice.values)))]
    # Four digits: readable, and the same in tables and files.
    return float(f"{math.exp(generator.uniform(math.log(choice.low), math.log(choice.high))):.4g}")


def in_words(settings: Settings) -> str:
    """Return settings as text, such as `tau_teacher 0.02, num_contexts 2`."""
    return ", ".join(f"{name} {shown(value)}" for name, value in settings.items())


def shown(value: Any) -> str:
    """Return a value as a person would write it: a tuple as its items separated by spaces."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
