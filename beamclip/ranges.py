"""Ranges of options: part of the type of a field, checked whenever its section is made.

    @dataclass(frozen=True)
    class StreamConfig:
        decode_threads: Count = 2

        def __post_init__(self) -> None:
            check_ranges(self)

`decode_threads=0` then raises InputError("decode_threads is 0: give 1 or more."), from a flag, from a YAML
file and in Python alike.
"""

import typing
from dataclasses import dataclass
from functools import cache
from math import inf, isfinite
from typing import Annotated, Any

from beamclip.errors import InputError


@dataclass(frozen=True)
class Range:
    """The values that an option may take: finite, and from `least` to `most`."""

    least: float
    most: float = inf
    beyond_least: bool = False
    """Whether `least` itself is excluded."""

    def __contains__(self, value: float) -> bool:
        above = value > self.least if self.beyond_least else value >= self.least
        return above and value <= self.most and abs(value) != inf

    def __str__(self) -> str:
        if self.most < inf:
            start, end = ("above", "and at most") if self.beyond_least else ("from", "to")
            return f"a number {start} {self.least:g} {end} {self.most:g}"
        return f"a number above {self.least:g}" if self.beyond_least else f"{self.least:g} or more"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, beyond_least=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def check_ranges(section: Any) -> None:
    """Refuse a section of options with a value outside its range; None is always allowed.

    Raises:
        InputError: names the option, its value and the range.
    """
    for name, allowed in ranges_of(section.__class__).items():
        value = getattr(section, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each not in allowed:
                what = f"{each}" if isfinite(each) else f"{each}, not a finite number"
                raise InputError(f"{name} is {what}: give {allowed}.")


@cache
def ranges_of(section_class: type) -> dict[str, Range]:
    """Return the range of each option of a section that has one."""
    hints = typing.get_type_hints(section_class, include_extras=True)
    found = {name: _range_in(hint) for name, hint in hints.items()}
    return {name: allowed for name, allowed in found.items() if allowed}


def _range_in(hint: Any) -> Range | None:
    """The range in a type, which may be optional, or that of a tuple's items."""
    for part in getattr(hint, "__metadata__", ()):
        if isinstance(part, Range):
            return part
    inner = [hint.__origin__] if hasattr(hint, "__metadata__") else typing.get_args(hint)
    return next(filter(None, map(_range_in, inner)), None)
