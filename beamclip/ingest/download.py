"""Limits of one download (time, bytes, redirects), and the reasons for which downloads fail."""

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
"""Also the reason where a host that answered 429 to other requests is paused beyond a download's deadline."""
DOWNLOAD_FAILED = "download failed"

REASONS = frozenset(
    [
        TIMED_OUT, HOST_NOT_FOUND, CONNECTION_FAILED, TLS_ERROR, MALFORMED_ANSWER, REDIRECT_LOOP,
        INCOMPLETE_BODY, BODY_TOO_LARGE, NO_MEMORY, PAUSED_HOST, DOWNLOAD_FAILED, MALFORMED_URL,
    ]
)  # fmt: skip

MAX_REDIRECTS = 10
MAX_OVERHEAD_BYTES = 256 * 2**10
"""Limit on bytes that are not body: handshakes, status lines, headers, chunk framing, trailers. A body raises
it by its own size, for the framing of its chunks."""


class FailedDownload(Exception):
    """A download failed. The message is one of few reasons, which are counted, and never a server's text."""


class Download:
    """The limits of one URL's download, over all its redirects and retries.

    It is passed to urllib and http.client as their timeout, which they hand on without looking at it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._requests = 0
        self._received = 0
        self._delivered = 0

    def seconds_left(self) -> float:
        """Return the seconds left, more than 0.

        Raises:
            TimeoutError: none are left.
        """
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError(TIMED_OUT)
        return left

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leave the time spent in the block, waiting for other downloads, out of the deadline."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._ends += time.monotonic() - began

    def start_over(self) -> None:
        """Count redirects from zero, since the same URL is requested again; time and bytes go on."""
        self._requests = 0

    def count_request(self) -> None:
        """Count a request; raise FailedDownload when it is one redirect too many."""
        self._requests += 1
        if self._requests > 1 + MAX_REDIRECTS:
            raise FailedDownload(REDIRECT_LOOP)

    def count_received(self, size: int) -> None:
        """Count bytes from the network; raise FailedDownload when too few of them are body."""
        self._received += size
        if self._received > MAX_OVERHEAD_BYTES + 2 * self._delivered:
            raise FailedDownload(MALFORMED_ANSWER)

    def count_body(self, size: int) -> None:
        """Count received bytes that belong to the body."""
        self._delivered += size


def reason_of(error: BaseException) -> str:
    """Return the reason to count for an error: the text of our own errors, else one of `REASONS`.

    Other errors are judged by their type and not by their text, which a server may have written.
    """
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
