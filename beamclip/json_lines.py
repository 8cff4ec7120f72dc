"""Files of one JSON object a line, written by processes that may be killed at any moment."""

import json
from pathlib import Path
from typing import Any

from beamclip.errors import InputError


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, none where it is missing; half a line at its end is left out.

    Raises:
        InputError: a whole line is no JSON object.
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
            f"{where}: no JSON ({error}). Remove this line, or take the file back from a copy."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: no JSON object. Remove this line.")
    return content


def mend_json_lines(path: Path) -> None:
    """Cut half a line off the end of a file, so that what is appended begins a new one."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            path.write_bytes(content[:whole])
