"""The urllib opener behind every download: public hosts only, one deadline, bounded bytes, good manners.

img2dataset calls `urllib.request.urlopen` and offers no hook of its own, but urlopen goes through
the opener of the process, which `urllib.request.install_opener` replaces. So the guard needs no
change inside img2dataset and works wherever a shard is downloaded, in a child process or in a task
of Ray: `install_guarded_opener` is called there, first thing. Redirects pass through it as well.

The timeout that a caller gives to `open` becomes a `Download`, the limits of that URL: name look-up,
connection, handshake, all redirects and the body end by its deadline, whatever a server sends. Only waiting
for a turn at a host and for memory, which is not the server's doing, does not count. A failure raises
`FailedDownload`, `RefusedURL` or urllib's HTTPError, and nothing else.
"""

import functools
import io
import ssl
import time
import urllib.request
from collections.abc import Container
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from beamclip.ingest.body_memory import MAX_BODY_BYTES, BodyMemory
from beamclip.ingest.download import (
    BODY_TOO_LARGE,
    PAUSED_HOST,
    Download,
    FailedDownload,
    reason_of,
)
from beamclip.ingest.guarded_socket import GuardedSocket, GuardedTLSSocket, NameLookUps, connect
from beamclip.ingest.host_turns import HostTurns, Turn, host_turns
from beamclip.ingest.hosts import WEB_PORTS, RefusedURL, host_addresses, url_refusal
from beamclip.ingest.retry_after import retry_delay
from beamclip.ingest.web_address import web_address

_CHUNK_BYTES = 1 << 16
_DEFAULT_SECONDS = 60.0


@dataclass(frozen=True)
class FetchRules:
    """What the downloads of a process are allowed to do."""

    turns: Path
    """File shared by the processes that count their requests to a host together; see `host_turns`."""
    per_host: int = 64
    """Requests to one host at a time, over all these processes."""
    allow_private_hosts: bool = False
    """Whether to reach private addresses and all ports, and to use proxies."""
    ports: Container[int] = WEB_PORTS
    """Ports that a URL may name without `allow_private_hosts`."""


def install_guarded_opener(rules: FetchRules, memory: BodyMemory) -> None:
    """Make every later `urllib.request.urlopen` of this process use `build_guarded_opener`."""
    urllib.request.install_opener(build_guarded_opener(rules, memory))


def build_guarded_opener(rules: FetchRules, memory: BodyMemory) -> urllib.request.OpenerDirector:
    """Build an opener for http and https that refuses what `beamclip.ingest.hosts` refuses.

    The caller has to pass the size of each body to `memory.drop_body` once it no longer holds the body.

    Proxies of the environment are used only with `allow_private_hosts`: a proxy resolves names itself,
    out of sight of the check.
    """
    opener = _GuardedOpener(rules, memory)
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _RedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _HTTPHandler(rules),
    ]
    if rules.allow_private_hosts:
        handlers.append(urllib.request.ProxyHandler())
    for handler in handlers:
        opener.add_handler(handler)
    return opener


class _Visit(Download):
    """A download, with the turn that it holds at its current host."""

    def __init__(self, seconds: float, hosts: HostTurns, memory: BodyMemory) -> None:
        super().__init__(seconds)
        self.memory = memory
        self.host = ""
        self._hosts = hosts
        self._turn: Turn | None = None

    def enter(self, host: str) -> None:
        """Exchange the turn held for one at a host; holding both, two downloads could deadlock."""
        self.leave()
        self.host = host
        while self._turn is None or self._hosts.pause_left(host):
            self.leave()
            self._wait_for_end_of_pause()
            with self.clock_stopped():
                self._turn = self._hosts.take(host)

    def leave(self) -> None:
        """Give the turn back, if one is held."""
        if self._turn is not None:
            self._hosts.give_back(self._turn)
            self._turn = None

    def _wait_for_end_of_pause(self) -> None:
        while pause := self._hosts.pause_left(self.host):
            if pause >= self.seconds_left():
                raise FailedDownload(PAUSED_HOST)
            time.sleep(pause)


class _GuardedOpener(urllib.request.OpenerDirector):
    """Checks each URL; the redirect handler comes back through `open` for every hop."""

    def __init__(self, rules: FetchRules, memory: BodyMemory) -> None:
        super().__init__()
        self._rules = rules
        self._memory = memory
        self._hosts = host_turns(rules.turns, rules.per_host)

    def open(self, fullurl: Any, data: Any = None, timeout: Any = None) -> Any:
        """Open a URL within `timeout` seconds, by default 60; the redirect handler passes the visit instead.

        Raises:
            FailedDownload, RefusedURL, HTTPError: there is no answer, or it is not a success.
        """
        if isinstance(timeout, _Visit):
            return self._ask(fullurl, timeout)
        seconds = timeout if isinstance(timeout, (int, float)) else _DEFAULT_SECONDS
        visit = _Visit(seconds, self._hosts, self._memory)
        try:
            return self._ask_until_served(fullurl, visit)
        except Exception as error:
            visit.leave()
            if isinstance(error, (HTTPError, RefusedURL)):
                raise
            raise FailedDownload(reason_of(error)) from error

    def _ask_until_served(self, request: Any, visit: _Visit) -> Any:
        """Open a URL, and retry as often as the host asks for it and the deadline allows."""
        attempt = 0
        while True:
            try:
                response = self._ask(request, visit)
                self._hosts.count_answer(visit.host, refused=False)
                return response
            except HTTPError as error:
                self._hosts.count_answer(visit.host, refused=error.code == 429)
                error.close()
                delay = retry_delay(error.code, error.headers.get("Retry-After"), attempt)
                if delay is None:
                    raise
                if error.code == 429:
                    self._hosts.pause(visit.host, delay)
                if delay >= visit.seconds_left():
                    raise
            attempt += 1
            visit.leave()
            time.sleep(delay)
            visit.start_over()

    def _ask(self, request: Any, visit: _Visit) -> Any:
        url = web_address(request if isinstance(request, str) else request.full_url)
        if isinstance(request, str):
            request = url
        else:
            request.full_url = url
        rules = self._rules
        reason = url_refusal(url, allow_private=rules.allow_private_hosts, ports=rules.ports)
        if reason is not None:
            raise RefusedURL(reason)
        visit.count_request()
        visit.enter((urlsplit(url).hostname or "").rstrip("."))
        return super().open(request, None, visit)  # type: ignore[arg-type] # see Download


class _RedirectHandler(urllib.request.HTTPRedirectHandler):
    """Follows redirects; the download counts them."""

    max_repeats = max_redirections = 1000


class _Response(HTTPResponse):
    """A response whose body is read whole, and only when the answer is a success."""

    def __init__(self, sock: GuardedSocket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._visit: Any = sock.download

    def read(self, amt: int | None = None) -> bytes:
        """Return the whole body; nothing of the page that comes with a redirect or an error.

        Raises:
            FailedDownload: the body is too large, is not complete or does not arrive in time.
            io.UnsupportedOperation: `amt` is given.
        """
        if amt is not None:
            raise io.UnsupportedOperation("bodies are read whole")
        if not 200 <= self.status < 300:
            return b""
        try:
            return self._read_body()
        except Exception as error:
            raise FailedDownload(reason_of(error)) from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the response and give back the turn at its host."""
        super().close()
        if self.headers is not None:  # else it was a proxy's answer, and the request is still to come
            self._visit.leave()

    def _read_body(self) -> bytes:
        if self.length is not None and self.length > MAX_BODY_BYTES:
            raise FailedDownload(BODY_TOO_LARGE)
        needed = MAX_BODY_BYTES if self.length is None else self.length
        body, taken = io.BytesIO(), 0
        visit, memory = self._visit, self._visit.memory
        try:
            while chunk := self.read1(_CHUNK_BYTES):
                visit.count_body(len(chunk))
                body.write(chunk)
                if body.tell() > MAX_BODY_BYTES:
                    raise FailedDownload(BODY_TOO_LARGE)
                if body.tell() > memory.share and not taken:
                    with visit.clock_stopped():
                        memory.take(needed, visit.seconds)
                    taken = needed
            if self.length:
                raise IncompleteRead(b"", self.length)
        except BaseException:
            memory.give_back(taken)
            raise
        if taken:
            memory.give_back(taken - body.tell())
        return body.getvalue()  # no copy: BytesIO hands out its own buffer


class _Connection(HTTPConnection):
    """A connection whose sockets belong to the download that http.client takes for a timeout."""

    response_class = _Response

    def __init__(self, host: str, *, look_ups: NameLookUps, **kwargs: Any) -> None:
        super().__init__(host, **kwargs)
        self._create_connection = functools.partial(_connect, look_ups)


class _TLSConnection(_Connection):
    """A connection of this kind for https."""

    default_port = HTTPSConnection.default_port

    def __init__(self, host: str, *, context: ssl.SSLContext, **kwargs: Any) -> None:
        super().__init__(host, **kwargs)
        self._context = context

    def connect(self) -> None:
        """Connect, through a proxy where there is one, and do the TLS handshake."""
        super().connect()
        behind_proxy: str | None = getattr(self, "_tunnel_host", None)
        assert isinstance(self.sock, GuardedSocket)
        self.sock = GuardedTLSSocket(self.sock, self._context, behind_proxy or self.host)


class _HTTPHandler(urllib.request.AbstractHTTPHandler):
    """Opens http and https URLs over the connections above."""

    def __init__(self, rules: FetchRules) -> None:
        super().__init__()
        resolve = functools.partial(host_addresses, allow_private=rules.allow_private_hosts)
        self._look_ups = NameLookUps(resolve)
        # One context for all connections: each new one reads the certificate store again, some 20 ms.
        self._context = ssl.create_default_context()
        self._context.set_alpn_protocols(["http/1.1"])

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        """Send a request over http."""
        connection: Any = functools.partial(_Connection, look_ups=self._look_ups)
        return self.do_open(connection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        """Send a request over https."""
        connection: Any = functools.partial(_TLSConnection, look_ups=self._look_ups, context=self._context)
        return self.do_open(connection, request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


def _connect(look_ups: NameLookUps, address: tuple[str, int], visit: Any, source: Any) -> GuardedSocket:
    host, port = address
    return connect(look_ups.addresses(host, port, visit), port, visit)
