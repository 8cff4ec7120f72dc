"""What the readers of URL lists share: lines with their numbers, and an error that names one."""

from collections.abc import Callable, Iterator
from typing import IO

BLOCK_BYTES = 8 << 20
LONGEST_LINE = 16 << 20
"""Bytes. A file without line breaks is no list, and must not fill the memory."""

Opener = Callable[[], IO[bytes]]
"""Opens a list at its beginning, unpacked."""


class UnreadableListError(ValueError):
    """A list that cannot be read as it stands; the message says in which line, and does not name the file."""


def numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines of a file from 1 on, without their line feeds and without a byte order mark.

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
    """The first bytes of a list without the byte order mark of UTF-8.

    Raises:
        UnreadableListError: they are those of UTF-16.
    """
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableListError("is encoded as UTF-16. Save it as UTF-8.")
    return start.removeprefix(b"\xef\xbb\xbf")


def shown(text: bytes) -> str:
    """The beginning of a line, for a message."""
    return repr(text[:60].decode("utf-8", "replace")) + ("..." if len(text) > 60 else "")
