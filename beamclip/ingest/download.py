"""One download: what it may still use of time, bytes and redirects, and why it failed."""

import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead, InvalidURL
from urllib.error import URLError

from beamclip.ingest.hosts import MALFORMED_URL, RefusedURL

TIMED_OUT = "timed out"
HOST_NOT_FOUND = "host not found"
CONNECTION_FAILED = "connection failed"
TLS_ERROR = "TLS error"
MALFORMED_ANSWER = "malformed answer"
REDIRECT_LOOP = "redirect loop"
INCOMPLETE_BODY = "incomplete body"
BODY_TOO_LARGE = "body too large"
NO_MEMORY = "no memory free for a large body"
PAUSED_HOST = "HTTP 429"
"""Also of what was not asked for because the host said 429 to another request and for how long."""
DOWNLOAD_FAILED = "download failed"

REASONS = frozenset(
    [
        TIMED_OUT, HOST_NOT_FOUND, CONNECTION_FAILED, TLS_ERROR, MALFORMED_ANSWER, REDIRECT_LOOP,
        INCOMPLETE_BODY, BODY_TOO_LARGE, NO_MEMORY, PAUSED_HOST, DOWNLOAD_FAILED, MALFORMED_URL,
    ]
)  # fmt: skip

MAX_REDIRECTS = 10
MAX_OVERHEAD_BYTES = 256 * 2**10
"""For all that is no body: handshakes, status lines, headers, framing of chunks, trailers. Framing may take
as many bytes again as the body."""


class FailedDownload(Exception):
    """The message is one of `REASONS`, whatever the server said: reasons are counted, so there are few."""


class Download:
    """The allowance of one URL, over all its redirects and repetitions.

    It travels through urllib and http.client as their timeout, which they hand on without looking at it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._requests = 0
        self._received = 0
        self._delivered = 0

    def seconds_left(self) -> float:
        """Always positive.

        Raises:
            TimeoutError: none are left.
        """
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError(TIMED_OUT)
        return left

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time that passes in the block, because of others, does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._ends += time.monotonic() - began

    def start_over(self) -> None:
        """The same URL is asked for again: redirects count from zero, time and bytes do not."""
        self._requests = 0

    def count_request(self) -> None:
        """Raises FailedDownload when it is one redirect too many."""
        self._requests += 1
        if self._requests > 1 + MAX_REDIRECTS:
            raise FailedDownload(REDIRECT_LOOP)

    def count_received(self, size: int) -> None:
        """Count bytes from the network; raises FailedDownload when too few of them are a body."""
        self._received += size
        if self._received > MAX_OVERHEAD_BYTES + 2 * self._delivered:
            raise FailedDownload(MALFORMED_ANSWER)

    def count_body(self, size: int) -> None:
        """Count bytes that turned out to be the body."""
        self._delivered += size


def reason_of(error: BaseException) -> str:
    """One of `REASONS`, from the kind of an error and not from its text, which a server may have written."""
    if isinstance(error, URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, (FailedDownload, RefusedURL)):
        return str(error)
    kinds: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
        ((TimeoutError, socket.timeout, FutureTimeoutError), TIMED_OUT),
        (socket.gaierror, HOST_NOT_FOUND),
        (ssl.SSLError, TLS_ERROR),
        (IncompleteRead, INCOMPLETE_BODY),
        (OSError, CONNECTION_FAILED),
        ((InvalidURL, UnicodeError), MALFORMED_URL),
        (HTTPException, MALFORMED_ANSWER),
    )
    return next((reason for kind, reason in kinds if isinstance(error, kind)), DOWNLOAD_FAILED)
