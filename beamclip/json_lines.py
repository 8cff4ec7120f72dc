"""Files of one JSON object a line, written by processes that may be killed at any moment."""

import json
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, none where it is missing; half a line at its end is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def mend_json_lines(path: Path) -> None:
    """Cut half a line off the end of a file, so that what is appended begins a new one."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            path.write_bytes(content[:whole])
