"""The numbers behind a picture, kept as a JSON file beside it, from which a report draws it again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from beamclip.errors import InputError
from beamclip.files import read_json, write_whole

Kept = TypeVar("Kept")


def write_kept(content: Any, path: Path) -> None:
    """Write plain values as a JSON file, whose folder is made.

    Raises:
        TypeError: a value has no JSON form.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, ensure_ascii=False))


def read_kept(path: Path, build: Callable[[Any], Kept], what: str) -> Kept:
    """Read what `write_kept` wrote.

    Args:
        build: makes the result of the values; raises KeyError, TypeError, ValueError or AttributeError if
            they are of something else.
        what: what the file holds, for the message: `a sheet`.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    content = read_json(path)
    try:
        return build(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not {what} ({error}). Delete it, or run its command again.") from None
