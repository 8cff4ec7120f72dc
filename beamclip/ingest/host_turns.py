"""Limit the requests to each host at a time, and pause when a host asks for it.

The limit holds over all processes that share a file. A turn is a lock on one of the host's `per_host` bytes
in that file; the kernel releases it when the process dies. The file stays empty: bytes need not exist to be
locked.
"""

import fcntl
import os
import random
import threading
import time
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

_BUCKETS = 1 << 20
"""Number of buckets that host names are hashed into; hosts in one bucket share their turns."""

_POLL_SECONDS = 0.01
"""Time between two attempts at turns that other processes hold; those of this one are handed on at once."""

_REFUSALS = 5
"""Consecutive answers of 429 after which a host is taken to mean this client, and not a single URL."""


@dataclass(frozen=True)
class Turn:
    """The right to one request: a bucket of hosts, and one of its `per_host` slots."""

    bucket: int
    slot: int


_opened: dict[tuple[Path, int], "HostTurns"] = {}
_opening = threading.Lock()


def host_turns(file: Path, per_host: int) -> "HostTurns":
    """Return the turns that go with a file; within a process, the same object each time.

    File locks belong to a process: two objects would not see each other's locks, and closing the file of one
    would drop the locks of both.
    """
    with _opening:
        if (file, per_host) not in _opened:
            _opened[file, per_host] = HostTurns(file, per_host)
        return _opened[file, per_host]


class HostTurns:
    """Hands out turns at hosts, and keeps the pauses that hosts ask for."""

    def __init__(self, file: Path, per_host: int) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._per_host = per_host
        self._held: set[Turn] = set()
        self._ended = threading.Condition()
        self._lines: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)
        self._refusals: Counter[str] = Counter()
        self._pauses: dict[str, float] = {}

    def take(self, host: str) -> Turn:
        """Wait for a turn, however long: every holder gives its turn back when its own time is up."""
        bucket = zlib.crc32(host.encode()) % _BUCKETS
        with self._ended:
            line = self._lines[bucket]
        with line, self._ended:  # other threads of this process wait behind the one that polls
            while (turn := self._try(bucket)) is None:
                self._ended.wait(_POLL_SECONDS)
            self._held.add(turn)
        return turn

    def give_back(self, turn: Turn) -> None:
        """End a turn."""
        with self._ended:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._offset(turn))
            self._held.remove(turn)
            self._ended.notify_all()

    def count_answer(self, host: str, *, refused: bool) -> None:
        """Count an answer of a host; `refused` tells whether it was 429."""
        with self._ended:
            self._refusals[host] = self._refusals[host] + 1 if refused else 0

    def pause(self, host: str, seconds: float) -> None:
        """Send a host no requests for so many seconds, if its last five answers were all 429."""
        with self._ended:
            if self._refusals[host] >= _REFUSALS:
                self._pauses[host] = max(self._pauses.get(host, 0.0), time.monotonic() + seconds)

    def pause_left(self, host: str) -> float:
        """Return the seconds until a host's pause ends; 0 without a pause."""
        return max(0.0, self._pauses.get(host, 0.0) - time.monotonic())

    def _try(self, bucket: int) -> Turn | None:
        start = random.randrange(self._per_host)
        for number in range(self._per_host):
            turn = Turn(bucket, (start + number) % self._per_host)
            if turn not in self._held and self._lock(turn):
                return turn
        return None

    def _lock(self, turn: Turn) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._offset(turn))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _offset(self, turn: Turn) -> int:
        return turn.bucket * self._per_host + turn.slot
