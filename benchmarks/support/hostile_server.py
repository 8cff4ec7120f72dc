"""A web server on the loopback address that misbehaves in every way that a downloader has to survive.

The first part of a path names the behaviour: `http://127.0.0.1:PORT/drip-header/17.jpg`. All other paths get
the picture. `FLOODS` send at full speed and never end, `DRIPS` send a few bytes at a time, `ANSWERS` are
short and wrong. Each comes with the reason under which an ingest must count it.

A TLS client on the same port gets a handshake that never ends, a byte at a time.

As a program, it serves a file until its standard input ends: python hostile_server.py PICTURE [ADDRESS ...].
It prints the port, which is the same at all addresses. On Linux, all of 127.0.0.0/8 is the local machine.
"""

import os
import socketserver
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import chain, repeat
from pathlib import Path

PAUSE_SECONDS = 0.2
"""Pause between two pieces of a drip."""

Pieces = Iterator[bytes]

_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"


def _endless(start: bytes, piece: bytes) -> Callable[[str], Pieces]:
    return lambda path: chain([start], repeat(piece))


def _once(*head: str) -> Callable[[str], Pieces]:
    return lambda path: iter(["\r\n".join([*head, "", ""]).encode()])


def _redirect(path: str) -> Pieces:
    """Redirect to the next number, so that no address comes twice."""
    kind, _, rest = path.strip("/").partition("/")
    number, _, name = rest.partition("-")
    target = f"/{kind}/{int(number) + 1 if name else 1}-{name or number}"
    yield f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()


def _slow_redirect(path: str) -> Pieces:
    yield b""
    yield from _redirect(path)


def _in_an_hour() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


FLOODS: dict[str, tuple[Callable[[str], Pieces], str]] = {
    "status-line": (_endless(b"HTTP/1.1 200 ", b"O" * 4096), "malformed answer"),
    "continue": (_endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "malformed answer"),
    "header-lines": (_endless(_OK, b"X-Filler: y\r\n" * 100), "malformed answer"),
    "header-line": (_endless(_OK + b"X-Filler: ", b"y" * 4096), "malformed answer"),
    "chunk-extension": (_endless(_CHUNKED, b"1;" + b"x" * 60000 + b"\r\nA\r\n"), "malformed answer"),
    "tiny-chunks": (_endless(_CHUNKED, b"1\r\nA\r\n" * 500), "malformed answer"),
    "trailers": (_endless(_CHUNKED + b"1\r\nA\r\n0\r\n", b"X-Filler: y\r\n" * 100), "malformed answer"),
    "body": (_endless(_OK + b"\r\n", bytes(1 << 16)), "body too large"),
    "chunked-body": (_endless(_CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n"), "body too large"),
    "redirect-body": (
        _endless(b"HTTP/1.1 302 Found\r\nLocation: /redirect-body/next\r\n\r\n", bytes(1 << 16)),
        "redirect loop",
    ),
    "error-page": (_endless(b"HTTP/1.1 404 Not Found\r\n\r\n", bytes(1 << 16)), "HTTP 404"),
}
DRIPS: dict[str, tuple[Callable[[str], Pieces], str]] = {
    "silence": (_endless(b"", b""), "timed out"),
    "drip-status": (_endless(b"HTTP/1.1 200 ", b"O"), "timed out"),
    "drip-continue": (_endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "timed out"),
    "drip-header": (_endless(_OK + b"X-Filler: ", b"y"), "timed out"),
    "drip-chunk-extension": (_endless(_CHUNKED + b"1;", b"x"), "timed out"),
    "drip-trailers": (_endless(_CHUNKED + b"1\r\nA\r\n0\r\n", b"X-Filler: y\r\n"), "timed out"),
    "drip-body": (_endless(_OK + b"Content-Length: 100000\r\n\r\n", b"A"), "timed out"),
    "slow-redirects": (_slow_redirect, "timed out"),
}
ANSWERS: dict[str, tuple[Callable[[str], Pieces], str]] = {
    "huge-length": (_once("HTTP/1.1 200 OK", f"Content-Length: {10**15}"), "body too large"),
    "cut-body": (_once("HTTP/1.1 200 OK", "Content-Length: 1000"), "incomplete body"),
    "redirect-loop": (_once("HTTP/1.1 302 Found", "Location: /redirect-loop/1"), "redirect loop"),
    "redirect-chain": (_redirect, "redirect loop"),
    "no-http": (_once("refused: private address"), "malformed answer"),
    "hang-up": (lambda path: iter(()), "connection failed"),
    "429-for-long": (_once("HTTP/1.1 429 Slow Down", "Retry-After: 3600"), "HTTP 429"),
    "503-for-long": (
        lambda path: _once("HTTP/1.1 503 Busy", f"Retry-After: {_in_an_hour()}")(path),
        "HTTP 503",
    ),
}
BEHAVIOURS = {**FLOODS, **DRIPS, **ANSWERS}
TLS = "slow-handshake"
REASONS = {**{kind: reason for kind, (_, reason) in BEHAVIOURS.items()}, TLS: "timed out"}


class HostileServer(socketserver.ThreadingTCPServer):
    """The server at one address.

    `visits` counts requests by path. `busiest` is the most requests that waited for a picture at a time: a
    request that waits is surely under way, one that was answered may be over. `delay_s` is how long a picture
    takes to come, in seconds; `locations` says where paths redirect to.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
    block_on_close = False

    def __init__(
        self, picture: bytes, address: str = "127.0.0.1", port: int = 0, delay_s: float = 0.0
    ) -> None:
        super().__init__((address, port), _Handler)
        length = f"Content-Length: {len(picture)}\r\n\r\n".encode()
        self.picture = _OK + b"Content-Type: image/jpeg\r\n" + length + picture
        self.delay_s = delay_s
        self.visits: Counter[str] = Counter()
        self.locations: dict[str, str] = {}
        self.busiest = self._waiting = 0
        self._lock = threading.Lock()

    @property
    def site(self) -> str:
        """URL of the server: `http://ADDRESS:PORT`."""
        return "http://{}:{}".format(*self.server_address[:2])

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count a request while it waits for its picture."""
        with self._lock:
            self._waiting += 1
            self.busiest = max(self.busiest, self._waiting)
        yield
        with self._lock:
            self._waiting -= 1

    def count_visit(self, path: str) -> None:
        """Count a request by its path."""
        with self._lock:
            self.visits[path] += 1

    def handle_error(self, *_: object) -> None:
        """Ignore errors: clients that hang up are expected here."""


class _Handler(socketserver.StreamRequestHandler):
    """Answers one request for each connection."""

    server: HostileServer
    disable_nagle_algorithm = True
    timeout = 60

    def handle(self) -> None:
        """Read a request, count it, and misbehave as its path says; a TLS handshake is never finished."""
        with suppress(OSError, ValueError):
            first = self.rfile.read(1)
            if first == b"\x16":
                self._send(_endless(b"\x16\x03\x03\x40\x00", b"\x02")(""), PAUSE_SECONDS)
                return
            path = (first + self.rfile.readline(65537)).split()[1].decode()
            while self.rfile.readline(65537) not in (b"\r\n", b"\n", b""):
                pass
            self.server.count_visit(path)
            self._answer(path)

    def _answer(self, path: str) -> None:
        kind = path.strip("/").partition("/")[0]
        if kind == "429-once" and self.server.visits[path] == 1:
            self.wfile.write(b"HTTP/1.1 429 Slow Down\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        elif path in self.server.locations:
            self._send(_once("HTTP/1.1 302 Found", f"Location: {self.server.locations[path]}")(path), 0.0)
        elif kind in BEHAVIOURS:
            self._send(BEHAVIOURS[kind][0](path), PAUSE_SECONDS if kind in DRIPS else 0.0)
        else:
            with self.server.at_work():
                time.sleep(self.server.delay_s)
            self.wfile.write(self.server.picture)

    def _send(self, pieces: Pieces, pause_seconds: float) -> None:
        for piece in pieces:
            self.wfile.write(piece)
            if pause_seconds:
                time.sleep(pause_seconds)
                # A drip that sends nothing would not notice that its client has gone.
                if self._is_gone():
                    return

    def _is_gone(self) -> bool:
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1) == b""
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.timeout)


@contextmanager
def hostile_server(
    picture: bytes, delay_s: float = 0.0, tls: ssl.SSLContext | None = None
) -> Iterator[HostileServer]:
    """Serve on a thread of this process for the length of a with block; with `tls`, over https."""
    with HostileServer(picture, delay_s=delay_s) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()
        yield server
        server.shutdown()


def _main(picture: str, *addresses: str) -> None:
    port = 0
    for address in addresses or ("127.0.0.1",):
        server = HostileServer(Path(picture).read_bytes(), address, port)
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(port, flush=True)
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
