"""Files of one JSON object per line, written by processes that may be killed at any moment."""

import json
import os
from pathlib import Path
from typing import Any

from beamclip.errors import InputError


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file, none if it is missing; an incomplete last line is left out.

    Raises:
        InputError: a whole line is not a JSON object.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if line.endswith(b"\n"):
            found.append(_object(line, f"{path}: line {number}"))
    return found


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not JSON ({error}). Remove this line, or restore the file from a copy."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: not a JSON object. Remove this line.")
    return content


def mend_json_lines(path: Path) -> None:
    """Cut an incomplete last line off a file, so that what is appended begins a new line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
