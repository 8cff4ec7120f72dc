"""A shard's rows, put back into the order of the list."""

import os
import pickle
from collections.abc import Callable
from contextlib import closing
from typing import IO, Any

_Row = tuple[bytes | None, str, object, dict[str, Any]]

_TURN_BYTES = 16 * 2**20
"""Size from which a file gives its turn to the other one, once that is empty."""


class OrderedWriter:
    """A sample writer of img2dataset that passes rows to another one in the order of the list.

    img2dataset writes rows as their downloads end. A row that comes before its turn waits in a file and not
    in memory, since one slow server holds back all rows behind its own, images included.

    Like img2dataset's own writers, it is for one thread.
    """

    def __init__(
        self, writer: Any, position_of: Callable[[str], int], files: tuple[IO[bytes], IO[bytes]]
    ) -> None:
        """Write to `writer`.

        Args:
            writer: a sample writer of img2dataset.
            position_of: returns the position in the shard, from 0, of the row with this key.
            files: two empty files, open for reading and writing, for rows that wait; `close` closes them.
        """
        self._writer = writer
        self._position_of = position_of
        self._waiting = _WaitingRows(files)
        self._next = 0

    def write(self, image: bytes | None, key: str, caption: object, meta: dict[str, Any]) -> None:
        """Pass a row on, and those that waited for it; or let it wait for its turn."""
        row = (image, key, caption, meta)
        position = self._position_of(key)
        if position == self._next:
            self._next += 1  # first: a row that cannot be written must not hold back the others
            self._writer.write(*row)
        else:
            self._waiting.put(position, row)
        while self._next in self._waiting:
            self._next += 1
            self._writer.write(*self._waiting.pop(self._next - 1))

    def close(self) -> None:
        """Pass on what still waits, and finish the shard's files."""
        # Nothing waits unless a row before it was lost. That fails the shard, with a count of what was lost.
        with closing(self._waiting), closing(self._writer):
            for position in self._waiting.positions():
                self._writer.write(*self._waiting.pop(position))


class _WaitingRows:
    """Rows by position, in two files that are filled in turn.

    Some row nearly always waits. A single file would never be empty, and would grow to the shard's size; of
    two, the one that is not filled is soon empty, and its space is free again.
    """

    def __init__(self, files: tuple[IO[bytes], IO[bytes]]) -> None:
        self._filled, self._drained = map(_RowFile, files)

    def __contains__(self, position: int) -> bool:
        return position in self._filled.offsets or position in self._drained.offsets

    def positions(self) -> list[int]:
        return sorted([*self._filled.offsets, *self._drained.offsets])

    def put(self, position: int, row: _Row) -> None:
        if not self._drained.offsets and self._filled.size > _TURN_BYTES:
            self._filled, self._drained = self._drained, self._filled
        self._filled.put(position, row)

    def pop(self, position: int) -> _Row:
        return (self._filled if position in self._filled.offsets else self._drained).pop(position)

    def close(self) -> None:
        self._filled.file.close()
        self._drained.file.close()


class _RowFile:
    """Rows by position in a file, which is emptied with the last of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self.offsets: dict[int, int] = {}

    def put(self, position: int, row: _Row) -> None:
        offset = self.file.seek(0, os.SEEK_END)
        pickle.dump(row, self.file, pickle.HIGHEST_PROTOCOL)
        self.size = self.file.tell()
        self.offsets[position] = offset

    def pop(self, position: int) -> _Row:
        self.file.seek(self.offsets.pop(position))
        row: _Row = pickle.load(self.file)
        if not self.offsets:
            self.size = self.file.truncate(0)
        return row
