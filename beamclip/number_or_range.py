"""The type of an option that takes a number or a range of numbers, such as `--num-workers 2..8`.

Apart from ranges, since that one is imported wherever torch runs, and this needs the parser of the flags.
"""

import re
from typing import Annotated, Any

import pydantic
from tyro.constructors import PrimitiveConstructorSpec

from beamclip.errors import InputError


def _number_or_text(given: Any) -> Any:
    return int(given) if isinstance(given, str) and given.isdecimal() else given


NumberOrRange = Annotated[
    int | str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT|INT..INT",
        instance_from_str=lambda words: _number_or_text(words[0]),
        is_instance=lambda value: isinstance(value, int | str),
        str_from_instance=lambda value: [str(value)],
    ),
    pydantic.BeforeValidator(_number_or_text),
]
"""Type of an option that takes a whole number from 0 on, or a range of numbers from 1 on such as "2..8"."""


def least_and_most(value: int | str) -> tuple[int, int]:
    """Return the ends of a NumberOrRange: those of a range, or the number twice.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int):
        return value, value
    least, _, most = value.partition("..")
    return int(least), int(most)


def check_number_or_range(name: str, value: int | str) -> None:
    """Refuse what is neither a number from 0 on nor an ascending range.

    Raises:
        InputError: names the option and its value.
    """
    is_range = isinstance(value, str) and re.fullmatch(r"[0-9]+\.\.[0-9]+", value, re.ASCII)
    least, most = least_and_most(value) if is_range or isinstance(value, int) else (-1, -1)
    if least < 0 or (is_range and not 1 <= least < most):
        raise InputError(f"{name} is {value}: give 0 or more, or a range such as 2..8.")
