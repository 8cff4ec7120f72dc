"""Manners towards one host: so many requests at a time, a pause when it asks for one, an end when it is mute.

The number of requests holds over all processes that share a folder. A turn is a lock on one of `per_host`
files of the host; the kernel takes it back from a process that dies, and needs nobody to keep count.
"""

import fcntl
import os
import random
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

_BUCKETS = 4096
"""Hosts whose names fall into one bucket share their turns; it bounds the number of files."""

_SILENCES = 20
"""A host is left alone after as many requests without an answer, one after the other."""


class HostTurns:
    """Turns at hosts, and what this process knows of them. A process is short: it downloads one shard."""

    def __init__(self, folder: Path, per_host: int) -> None:
        self._folder = folder
        self._per_host = per_host
        self._last_slot: dict[int, int] = {}
        self._paused: dict[str, float] = {}
        self._silences: Counter[str] = Counter()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, host: str) -> int:
        """Wait for a turn; gives a file descriptor, and closing it ends the turn.

        All that hold one are ended by the deadline of their download, so the wait is bounded by theirs.
        """
        bucket = zlib.crc32(host.encode()) % _BUCKETS
        start = self._last_slot.get(bucket, random.randrange(self._per_host))
        for number in range(self._per_host):
            slot = (start + number) % self._per_host
            descriptor = self._open(bucket, slot)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            self._last_slot[bucket] = slot
            return descriptor
        descriptor = self._open(bucket, random.randrange(self._per_host))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def pause(self, host: str, seconds: float) -> None:
        """The host asked for no further request for so long."""
        with self._lock:
            self._paused[host] = max(self._paused.get(host, 0.0), time.monotonic() + seconds)

    def pause_left(self, host: str) -> float:
        """Seconds; 0 without a pause."""
        return max(0.0, self._paused.get(host, 0.0) - time.monotonic())

    def count_answer(self, host: str) -> None:
        """The host answered, whatever it said."""
        self._silences.pop(host, None)

    def count_silence(self, host: str) -> None:
        """The host did not answer in time, or did not take the connection."""
        with self._lock:
            self._silences[host] += 1

    def is_silent(self, host: str) -> bool:
        """Whether it is of no use to ask again."""
        return self._silences[host] >= _SILENCES

    def _open(self, bucket: int, slot: int) -> int:
        return os.open(self._folder / f"{bucket}-{slot}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
