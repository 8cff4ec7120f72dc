"""Sockets that keep to the time and the bytes of a download at every single read and write.

http.client reads status lines, `100 Continue` answers, headers, chunk sizes and trailers in loops of its own
that a server can keep going, and the timeout of a socket starts anew with each read. Here each read and write
gets the time that its download has left, whatever loop it is called from.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from beamclip.ingest.download import Download

_RECORDS = 1 << 16
_MAX_ADDRESSES = 4


class GuardedSocket(socket.socket):
    """A TCP socket that keeps to the limits of one download."""

    def __init__(self, download: Download, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.download = download

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Like socket.recv_into, within the limits of the download."""
        self.settimeout(self.download.seconds_left())
        size = super().recv_into(buffer, nbytes, flags)
        self.download.count_received(size)
        return size

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Like socket.sendall, within the time of the download."""
        self.settimeout(self.download.seconds_left())
        super().sendall(data, flags)


class GuardedTLSSocket(GuardedSocket):
    """TLS over a connected socket, which it takes over.

    OpenSSL works on buffers in memory instead of on the socket: on the socket, it would go on reading by
    itself for as long as a server sends records that carry no data.
    """

    def __init__(self, plain: GuardedSocket, context: ssl.SSLContext, server_hostname: str) -> None:
        super().__init__(plain.download, fileno=plain.detach())
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._buffer = bytearray(_RECORDS)
        try:
            self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=server_hostname)
            self._run(self._tls.do_handshake)
        except BaseException:
            self.close()
            raise

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Like GuardedSocket.recv_into, for decrypted bytes; returns 0 at the end of the stream."""
        try:
            size: int = self._run(self._tls.read, nbytes or len(buffer), buffer)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0
        return size

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Encrypt and send all bytes, within the time of the download."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._run(self._tls.write, rest) :]

    def _run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                result = step(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
                continue
            self._flush()
            return result

    def _flush(self) -> None:
        if self._to_send.pending:
            super().sendall(self._to_send.read())

    def _feed(self) -> None:
        size = super().recv_into(self._buffer)
        if size:
            self._received.write(memoryview(self._buffer)[:size])
        else:
            self._received.write_eof()


class NameLookUps:
    """Looks up the addresses of hosts within the time that a download has left.

    getaddrinfo cannot be interrupted. It runs on a daemon thread of its own, which a download leaves behind
    when its time is up. Downloads from one host share a look-up; at most `at_once` of them run at a time,
    those that are stuck included.
    """

    def __init__(self, resolve: Callable[[str, int], Sequence[str]], at_once: int = 64) -> None:
        self._resolve = resolve
        self._places = threading.BoundedSemaphore(at_once)
        self._found: dict[tuple[str, int], Future[Sequence[str]]] = {}
        self._lock = threading.Lock()

    def addresses(self, host: str, port: int, download: Download) -> Sequence[str]:
        """Return a host's addresses in the resolver's order; they are kept as long as this object lives.

        Raises:
            TimeoutError: there was no answer in time.
            OSError, RefusedURL: `resolve` raised it.
        """
        key, seconds = (host, port), download.seconds_left()
        with self._lock:
            future = self._found.get(key)
            is_first = future is None
            if future is None:
                future = self._found[key] = Future()
        if is_first:
            self._start(key, future, seconds)
        return future.result(timeout=download.seconds_left())

    def _start(self, key: tuple[str, int], future: "Future[Sequence[str]]", seconds: float) -> None:
        if self._places.acquire(timeout=seconds):
            threading.Thread(target=self._look_up, args=(key, future), daemon=True).start()
        else:
            self._fail(key, future, TimeoutError("all name look-ups are stuck"))

    def _look_up(self, key: tuple[str, int], future: "Future[Sequence[str]]") -> None:
        try:
            future.set_result(self._resolve(*key))
        except Exception as error:
            self._fail(key, future, error)
        finally:
            self._places.release()

    def _fail(self, key: tuple[str, int], future: "Future[Sequence[str]]", error: Exception) -> None:
        with self._lock:
            del self._found[key]
        future.set_exception(error)


def connect(addresses: Sequence[str], port: int, download: Download) -> GuardedSocket:
    """Connect to the first of up to four addresses that answers; each gets an equal share of the time left.

    Raises:
        OSError: none answered, or there is none.
    """
    failure: OSError | None = None
    tried = addresses[:_MAX_ADDRESSES]
    for number, address in enumerate(tried):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = GuardedSocket(download, family=family, type=socket.SOCK_STREAM)
        try:
            sock.settimeout(download.seconds_left() / (len(tried) - number))
            sock.connect((address, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            failure = error
            continue
        return sock
    raise failure or OSError("the host has no address")
