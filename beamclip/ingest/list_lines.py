"""Shared by the readers of URL lists: numbered lines, and an error that names a line."""

from collections.abc import Callable, Iterator
from typing import IO

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 16 << 20
"""Longest line, bytes. A file without line breaks is not a list, and must not fill the memory."""

Opener = Callable[[], IO[bytes]]
"""Opens a list at its beginning, decompressed."""


class UnreadableListError(ValueError):
    """A list cannot be read as it is. The message names the line where there is one, but not the file."""


def numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1, without line feeds and byte order mark.

    Raises:
        UnreadableListError: a line is longer than `LONGEST_LINE`, or the file is UTF-16.
    """
    number, rest, first = 1, b"", True
    while block := file.read(BLOCK_BYTES):
        if first:
            block, first = without_mark(block), False
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield number, line
            number += 1
        if len(rest) > LONGEST_LINE:
            raise UnreadableListError(f"line {number} is longer than {LONGEST_LINE >> 20} MiB.")
    if rest:
        yield number, rest


def without_mark(start: bytes) -> bytes:
    """Return the first bytes of a list without the byte order mark of UTF-8.

    Raises:
        UnreadableListError: they begin with the byte order mark of UTF-16.
    """
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableListError("is encoded as UTF-16. Save it as UTF-8.")
    return start.removeprefix(b"\xef\xbb\xbf")


def shown(text: bytes) -> str:
    """Return the beginning of a line, quoted for a message."""
    return repr(text[:60].decode("utf-8", "replace")) + ("..." if len(text) > 60 else "")
