"""The memory that the bodies of all downloads of a process may take together."""

import threading
import time

from beamclip.ingest.download import NO_MEMORY, FailedDownload

MAX_BODY_BYTES = 256 * 2**20
"""Largest body that is downloaded; a larger one fails."""

_SMALL_BYTES = 256 * 2**20
_LARGE_BYTES = MAX_BODY_BYTES
_LEAST_SHARE = 256 * 2**10


class BodyMemory:
    """A budget of 512 MiB: half for small bodies, split evenly, and half for the few large ones.

    A body of up to `share` bytes never waits: up to 1,024 bodies of this size fit into the first half, and
    each further one adds 256 KiB to it. A larger body takes all that it may still need from the second half
    at once, or waits. Nobody waits while holding what another waits for, so there is no deadlock; and they
    wait in line, so that a large request is not overtaken forever.
    """

    def __init__(self, bodies: int) -> None:
        """Split the first half among `bodies`, the number that can be in memory at a time."""
        self.share = max(_LEAST_SHARE, _SMALL_BYTES // bodies)
        self._free = _LARGE_BYTES
        self._changed = threading.Condition()
        self._line = threading.Lock()

    def take(self, size: int, patience_s: float) -> None:
        """Take `size` bytes, at most MAX_BODY_BYTES, from the second half.

        Raises:
            FailedDownload: they did not become free within `patience_s` seconds.
        """
        ends = time.monotonic() + patience_s
        if not self._line.acquire(timeout=patience_s):
            raise FailedDownload(NO_MEMORY)
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._free >= size, max(0.0, ends - time.monotonic())):
                    raise FailedDownload(NO_MEMORY)
                self._free -= size
        finally:
            self._line.release()

    def give_back(self, size: int) -> None:
        """Give back bytes that were taken."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def drop_body(self, size: int) -> None:
        """Give back what a body of this size took, once it is out of memory."""
        if size > self.share:
            self.give_back(size)
