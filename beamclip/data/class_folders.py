"""Data with a folder of images for each class: every file in it, and why some will not be read.

The decoder tells by the content whether a file is an image. This module sets aside only files that cannot be
read at all, or are not meant as images, such as hidden ones. Each gets a reason, by which it is counted.
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
    """Return the folders in `root`, links included, and the files beside them, without hidden ones."""
    folders, files = list[str](), list[str]()
    for entry in fs.ls(root, detail=True):
        path = entry["name"].rstrip("/")
        if path != root.rstrip("/") and not _is_hidden(posixpath.basename(path)):
            is_folder = entry["type"] == "directory" or (entry.get("islink") and fs.isdir(path))
            (folders if is_folder else files).append(path)
    return sorted(folders), sorted(files)


def folder_entries(fs: Any, folder: str) -> list[Entry]:
    """Return everything below a class folder, nested and linked folders included, sorted by path."""
    return sorted(_local_entries(folder) if getattr(fs, "local_file", False) else _remote_entries(fs, folder))


def read_entry(fs: Any, path: str) -> tuple[bytes | None, str | None]:
    """Return the content of a file and None, or None and why the file is not read.

    Raises:
        OSError: the file system cannot be reached.
    """
    try:
        if fs.size(path) > MAX_BYTES:
            return None, TOO_LARGE
        return fs.cat_file(path), None
    # This file alone is gone or forbidden; a connection that fails is an outage, and raised.
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        return None, UNREADABLE


def _local_entries(folder: str) -> Iterator[Entry]:
    top = os.path.realpath(folder)
    seen, waiting = set[str](), [folder]
    while waiting:
        here = waiting.pop()
        place = os.path.realpath(here)
        # A link to a folder that was seen before, or that holds the class folder, would never end.
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
