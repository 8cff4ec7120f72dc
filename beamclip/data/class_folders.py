"""A folder of images for each class: every file in it, and what stands in the way of those that are no image.

Whether a file is an image is for the decoder to say, by its content; here only what cannot be read at all,
or would not be meant, is told apart. All of them are counted.
"""

import os
import posixpath
from collections.abc import Iterator
from typing import Any

from beamclip.data.image_limits import MAX_BYTES, TOO_LARGE

HIDDEN_FILE = "hidden file"
NOT_A_FILE = "not a regular file"
BROKEN_LINK = "dangling link"
REPEATED_FOLDER = "folder linked again or into itself"
UNREADABLE = "unreadable file"
OUTSIDE = "file outside of the class folders"

_OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})

Entry = tuple[str, str | None]
"""A path, and why it will not be read; None for a file that may be an image."""


def class_folders(fs: Any, root: str) -> tuple[list[str], list[str]]:
    """Folders in a folder, linked ones included, and the files beside them; hidden ones are left out."""
    folders, files = list[str](), list[str]()
    for entry in fs.ls(root, detail=True):
        path = entry["name"].rstrip("/")
        if path != root.rstrip("/") and not _is_hidden(posixpath.basename(path)):
            is_folder = entry["type"] == "directory" or (entry.get("islink") and fs.isdir(path))
            (folders if is_folder else files).append(path)
    return sorted(folders), sorted(files)


def folder_entries(fs: Any, folder: str) -> list[Entry]:
    """Everything below a class folder, nested and linked folders included, in the order of the paths."""
    return sorted(_local_entries(folder) if getattr(fs, "local_file", False) else _remote_entries(fs, folder))


def read_entry(fs: Any, path: str) -> tuple[bytes | None, str | None]:
    """The content of a file, or why it cannot be had."""
    try:
        if fs.size(path) > MAX_BYTES:
            return None, TOO_LARGE
        return fs.cat_file(path), None
    # One file that is gone or forbidden; a connection that fails is an outage, and raised.
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return None, UNREADABLE


def _local_entries(folder: str) -> Iterator[Entry]:
    top = os.path.realpath(folder)
    seen, waiting = set[str](), [folder]
    while waiting:
        here = waiting.pop()
        place = os.path.realpath(here)
        # A link may lead to a folder that was here before, or around the class folder: each would never end.
        if place in seen or top.startswith(place.rstrip("/") + "/"):
            yield here, REPEATED_FOLDER
            continue
        seen.add(place)
        try:
            with os.scandir(here) as found:
                entries = list(found)
        except OSError:
            yield here, UNREADABLE
            continue
        for entry in entries:
            problem = _problem_of(entry)
            if problem is None and entry.is_dir():
                waiting.append(entry.path)
            else:
                yield entry.path, problem


def _problem_of(entry: "os.DirEntry[str]") -> str | None:
    if _is_hidden(entry.name):
        return HIDDEN_FILE
    try:
        if entry.is_dir() or entry.is_file():
            return None
    except OSError:  # links that lead to each other
        return BROKEN_LINK
    return BROKEN_LINK if entry.is_symlink() and not os.path.exists(entry.path) else NOT_A_FILE


def _remote_entries(fs: Any, folder: str) -> Iterator[Entry]:
    for path in fs.find(folder):
        names = posixpath.relpath(path, folder).split("/")
        yield path, HIDDEN_FILE if any(map(_is_hidden, names)) else None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS
