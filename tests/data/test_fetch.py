"""The opener behind every download, against a server on this machine."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from beamclip.data import fetch
from beamclip.data.fetch import build_guarded_opener
from beamclip.data.hosts import RefusedURL, public_addresses

BODY = bytes(range(256)) * 40


class Site(BaseHTTPRequestHandler):
    """`/moved/URL` redirects there, `/drip` sends a byte now and then, all else is BODY."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Site.seen.append(self.path)
        _, kind, *rest = self.path.split("/", 2)
        self.send_response(302 if kind == "moved" else 200)
        if kind == "moved":
            self.send_header("Location", rest[0])
        self.send_header("Content-Length", str(len(BODY) + (kind == "short")))
        self.end_headers()
        if kind == "drip":
            self.drip()
        self.wfile.write(BODY)
        self.close_connection = True

    def drip(self) -> None:
        for byte in BODY[:10]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.2)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/secret/a", "http://localhost:{port}/secret/b"])
def test_redirect_to_a_private_address_is_refused(
    site: str, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    # The only stand-in: a name server that places one public name on this machine, where the test site is.
    monkeypatch.setattr(
        fetch, "public_addresses",
        lambda host, port: ["127.0.0.1"] if host == "public.example" else public_addresses(host, port),
    )  # fmt: skip
    port = site.rpartition(":")[2]
    opener = build_guarded_opener(allow_private_hosts=False)
    with opener.open(f"http://public.example:{port}/a", timeout=5) as response:
        assert response.read() == BODY
    with pytest.raises(RefusedURL, match="private address"):
        opener.open(f"http://public.example:{port}/moved/{target.format(port=port)}", timeout=5)
    assert not [path for path in Site.seen if path.startswith("/secret/")]


def test_guard_ignores_proxies_of_the_environment(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site)
    with pytest.raises(RefusedURL):
        build_guarded_opener(allow_private_hosts=False).open("http://localhost/proxied", timeout=5)
    assert "http://localhost/proxied" not in Site.seen


def test_slow_drip_meets_the_deadline(site: str) -> None:
    opener = build_guarded_opener(allow_private_hosts=True)
    with opener.open(f"{site}/drip", timeout=0.5) as response, pytest.raises(TimeoutError):
        response.read()
