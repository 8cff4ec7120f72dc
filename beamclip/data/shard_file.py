"""A shard as a file: a failure to open or read it is told apart from damage inside it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from beamclip.data.lost_samples import in_words
from beamclip.errors import InputError

Rows = range | NDArray[np.int64]
"""Row numbers within one shard, ascending."""

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

    def __init__(self, file: Any, size: int) -> None:
        """size: bytes in the file."""
        self.size = size
        self._file = file
        self._place = 0

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
        """As of any file; the end is the last place there is."""
        place += (0, self._place, self.size)[whence]
        if not 0 <= place <= self.size:
            raise EOFError(f"byte {place} of a file of {self.size}")
        try:
            self._file.seek(place)
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
            file: Any = stack.enter_context(fsspec.open(path, "rb"))
            size = file.seek(0, 2)
            file.seek(0)
        except Exception as error:
            raise StoreError(error) from error
        yield ShardFile(file, size)
