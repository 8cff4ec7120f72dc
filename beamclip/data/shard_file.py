"""A shard as a file: a failure to open or read it is told apart from damage inside it."""

import contextlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from beamclip.data.lost_samples import in_words
from beamclip.errors import InputError

Rows = range | NDArray[np.int64]
"""Row numbers within one shard, ascending."""

READ_AHEAD = 8 << 20
"""Bytes that a store is asked for at a time where a shard is read from its beginning. Two of them are in
memory for each open shard; s3fs alone would ask for 50 MiB."""

_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    ValueError,
)
"""A store that answers so gives the same answer a second later."""


class StoreError(Exception):
    """A file could not be opened or read, whatever it holds."""

    def __init__(self, error: Exception) -> None:
        super().__init__(in_words(error))
        self.is_final = isinstance(error, _FINAL)
        """Whether another try would meet the same error."""


class MissingShardError(InputError):
    """A shard that should be there cannot be opened on some node."""


class UnansweredShardError(RuntimeError):
    """The store of a shard did not answer, or was busy, each time that it was asked."""


class ShardFile:
    """What tarfile and pyarrow need of a file, without places beyond its end.

    A place that damaged content names raises EOFError; a failure of the store raises StoreError.
    """

    closed = False

    def __init__(
        self,
        file: Any,
        size: int,
        first: int = 0,
        *,
        is_part: bool = False,
        key: tuple[str, str] | None = None,
    ) -> None:
        """Args:
        file: holds the bytes from `first` on.
        size: byte at which it ends.
        is_part: whether the shard goes on there, with another sample.
        key: path and version of the shard, if each read is a request to its store.
        """
        self.size = size
        self.key = key
        self._file = file
        self._first = self._place = first
        self._is_part = is_part

    @property
    def at_end_of_part(self) -> bool:
        """Whether the next byte is that of a sample beyond those that were read."""
        return self._is_part and self._place == self.size

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, all that are left by default."""
        left = self.size - self._place
        try:
            data: bytes = self._file.read(left if size < 0 else min(size, left))
        except MemoryError:
            raise
        except Exception as error:
            raise StoreError(error) from error
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        """Move to a place, at most to the end of the part; return the place."""
        place += (0, self._place, self.size)[whence]
        if not self._first <= place <= self.size:
            raise EOFError(f"byte {place} of a file of {self.size}")
        try:
            self._file.seek(place - self._first)
        except Exception as error:
            raise StoreError(error) from error
        self._place = place
        return place

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def readable(self) -> bool:
        """Return True: a shard is only ever read."""
        return True

    def seekable(self) -> bool:
        """Return True: any byte of a shard can be the next one."""
        return True

    def close(self) -> None:
        """Nothing: `open_shard` closes the file."""


@contextlib.contextmanager
def open_shard(path: str) -> Iterator[ShardFile]:
    """Open a shard for reading.

    Raises:
        StoreError: it cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        try:
            fs, place = fsspec.core.url_to_fs(path)
            file: Any = stack.enter_context(fs.open(place, "rb", block_size=READ_AHEAD))
            size = file.seek(0, 2)
            file.seek(0)
        except Exception as error:
            raise StoreError(error) from error
        yield ShardFile(file, size)


@contextlib.contextmanager
def open_ranges(path: str, version: str, size: int) -> Iterator[ShardFile]:
    """Open a shard of which few places are read: from a store, each of them by a request of its own.

    Args:
        version: of the shard, with which its size may change.
        size: bytes of the shard; 0: unknown.

    Raises:
        StoreError: it cannot be opened.
    """
    if path.startswith("file://") or not size:
        with open_shard(path) as file:
            yield file
        return
    try:
        ranges = _Ranges(path)
    except Exception as error:
        raise StoreError(error) from error
    yield ShardFile(ranges, size, key=(path, version))


class _Ranges:
    def __init__(self, path: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(path)
        self._place = 0

    def seek(self, place: int) -> None:
        self._place = place

    def read(self, size: int) -> bytes:
        end = self._place + size
        content: bytes = self._fs.cat_file(self._path, start=self._place, end=end) if size else b""
        self._place += len(content)
        return content


def read_part(path: str, first: int, stop: int) -> ShardFile:
    """Read the bytes [first, stop) of a shard, which hold whole samples, by one request to its store.

    Raises:
        StoreError: they cannot be read.
    """
    try:
        fs, place = fsspec.core.url_to_fs(path)
        content: bytes = fs.cat_file(place, start=first, end=stop)
    except Exception as error:
        raise StoreError(error) from error
    # A shard that is shorter by now breaks off.
    return ShardFile(BytesIO(content), first + len(content), first, is_part=first + len(content) == stop)
