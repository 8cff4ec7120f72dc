"""The urllib opener behind every download: public hosts only, one deadline, a bounded body.

img2dataset calls `urllib.request.urlopen` and offers no hook of its own, but urlopen goes through
the opener of the process, which `urllib.request.install_opener` replaces. So the guard needs no
change inside img2dataset and works wherever a shard is downloaded, in a child process or in a task
of Ray: `install_guarded_opener` is called there, first thing. Redirects pass through it as well.
"""

import functools
import socket
import ssl
import time
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any

from beamclip.data.hosts import RefusedURL, public_addresses, url_refusal
from beamclip.data.web_address import web_address

MAX_BODY_BYTES = 256 * 2**20
"""A larger body fails: one endless answer must not fill the memory of a node."""

_CHUNK_BYTES = 1 << 16


def install_guarded_opener(*, allow_private_hosts: bool) -> None:
    """Make every later `urllib.request.urlopen` of this process use `build_guarded_opener`."""
    urllib.request.install_opener(build_guarded_opener(allow_private_hosts=allow_private_hosts))


def build_guarded_opener(*, allow_private_hosts: bool) -> urllib.request.OpenerDirector:
    """An opener for http and https that refuses what `beamclip.data.hosts` refuses.

    Proxies of the environment serve only with `allow_private_hosts`: a proxy resolves names itself,
    out of sight of the check.
    """
    opener = _GuardedOpener(allow_private_hosts)
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _HTTPHandler(allow_private_hosts),
        _HTTPSHandler(allow_private_hosts),
    ]
    if allow_private_hosts:
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener


class _GuardedOpener(urllib.request.OpenerDirector):
    """Checks the text of each URL; the redirect handler comes back through `open` for every hop."""

    def __init__(self, allow_private_hosts: bool) -> None:
        super().__init__()
        self._allow_private_hosts = allow_private_hosts

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        url = web_address(fullurl if isinstance(fullurl, str) else fullurl.full_url)
        if isinstance(fullurl, str):
            fullurl = url
        else:
            fullurl.full_url = url
        reason = url_refusal(url, allow_private=self._allow_private_hosts)
        if reason is not None:
            raise RefusedURL(reason)
        return super().open(fullurl, data, timeout)


class _TimedResponse(HTTPResponse):
    """A response whose header and body must arrive within the timeout of its socket, in all.

    The timeout of a socket counts from one read to the next, so that a server which sends a byte a
    second never meets it and holds its whole shard back.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout = sock.gettimeout()
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        body = bytearray()
        while chunk := self.read1(_CHUNK_BYTES):
            body += chunk
            if time.monotonic() > self._deadline:
                raise TimeoutError("timed out")
            if len(body) > MAX_BODY_BYTES:
                raise ValueError("body too large")
        if self.length:
            raise IncompleteRead(bytes(body), self.length)
        return bytes(body)


class _PublicHTTPConnection(HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect_public(self.host, self.port, self.timeout)


class _PublicHTTPSConnection(HTTPSConnection):
    def __init__(self, host: str, *, context: ssl.SSLContext, **kwargs: Any) -> None:
        super().__init__(host, context=context, **kwargs)
        self._tls = context

    def connect(self) -> None:
        plain = _connect_public(self.host, self.port, self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


class _HTTPHandler(urllib.request.AbstractHTTPHandler):
    def __init__(self, allow_private_hosts: bool) -> None:
        super().__init__()
        self._connection = HTTPConnection if allow_private_hosts else _PublicHTTPConnection

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(functools.partial(_timed, self._connection), request)

    http_request = urllib.request.AbstractHTTPHandler.do_request_


class _HTTPSHandler(urllib.request.AbstractHTTPHandler):
    def __init__(self, allow_private_hosts: bool) -> None:
        super().__init__()
        self._connection = HTTPSConnection if allow_private_hosts else _PublicHTTPSConnection
        # One context for all connections: each new one reads the certificate store again, some 20 ms.
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(functools.partial(_timed, self._connection), request, context=self._tls)

    https_request = urllib.request.AbstractHTTPHandler.do_request_


def _timed(connection_class: Any, host: str, **kwargs: Any) -> Any:
    connection = connection_class(host, **kwargs)
    connection.response_class = _TimedResponse
    return connection


def _connect_public(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to the first address of a host that answers, after all were found to be public."""
    failure: OSError | None = None
    for address in public_addresses(host, port):
        try:
            sock = socket.create_connection((address, port), timeout)
        except OSError as error:
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    raise failure or OSError(f"{host} has no address")
