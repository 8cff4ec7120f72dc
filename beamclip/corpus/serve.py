"""Serve a folder over HTTP on the loopback address, for the quickstart, the benchmarks and the tests.

The server is a process of its own, so that it shares no interpreter lock with the downloads it feeds,
and ends with the program that started it, however that ends.
"""

import mimetypes
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from beamclip.child import start_module
from beamclip.errors import InputError


@contextmanager
def serve_folder(root: Path, port: int = 0) -> Iterator[str]:
    """Serve the files under `root`, read-only, for the length of a with block.

    Args:
        root: folder; nothing outside it is served, neither by `..` nor through links.
        port: TCP port of 127.0.0.1; 0 takes a free one.

    Yields:
        The address, `http://127.0.0.1:PORT`; the file `root/a/b.png` is at `ADDRESS/a/b.png`.

    Raises:
        InputError: `root` is not a folder.
        RuntimeError: the server did not start, for example because the port is taken.
    """
    if not root.is_dir():
        raise InputError(f"{root}: not a folder. Give the folder to serve.")
    pipe = subprocess.PIPE
    process = start_module(__name__, str(root.resolve()), str(port), stdin=pipe, stdout=pipe)
    try:
        assert process.stdout is not None
        bound = process.stdout.readline().decode().strip()
        if not bound:
            raise RuntimeError(f"the server of {root} did not start on port {port}: is it taken?")
        yield f"http://127.0.0.1:{bound}"
    finally:
        process.kill()
        process.communicate()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


class _FolderHandler(socketserver.StreamRequestHandler):
    """GET and HEAD of HTTP/1.1 with keep-alive.

    http.server parses headers with the email package and sends the answer in several packets; this
    handler is about three times as fast, and leaves that time to the client on the same machine.
    """

    disable_nagle_algorithm = True
    timeout = 60  # seconds that an idle connection stays open

    def __init__(self, root: str, *args: Any) -> None:
        self._root = root
        super().__init__(*args)

    def handle(self) -> None:
        """Answer the requests of one connection until it ends."""
        # A client that disconnects or stays silent for too long is not an error.
        try:
            while self._answer_one():
                pass
        except (OSError, ValueError):
            return

    def _answer_one(self) -> bool:
        request = self.rfile.readline(65537).split()
        if len(request) != 3:
            return False
        method, target, version = request
        headers = self._read_headers()
        keep = version == b"HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
        if method not in (b"GET", b"HEAD"):
            self._send(HTTPStatus.NOT_IMPLEMENTED, "text/plain", b"", keep=False, with_body=True)
            return False
        path = _locate(self._root, target.decode("latin-1"))
        try:
            body = Path(path).read_bytes() if path else None
        except OSError:
            body = None
        if path is None or body is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n", keep, method == b"GET")
        else:
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            self._send(HTTPStatus.OK, kind, body, keep, method == b"GET")
        return keep

    def _read_headers(self) -> dict[bytes, bytes]:
        headers = {}
        while (line := self.rfile.readline(65537)) not in (b"\r\n", b"\n", b""):
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > 100:
                raise ValueError("too many headers")
        return headers

    def _send(self, status: HTTPStatus, kind: str, body: bytes, keep: bool, with_body: bool) -> None:
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self.request.sendall(head.encode("latin-1") + (body if with_body else b""))


def _locate(root: str, target: str) -> str | None:
    """Return the path under `root` that a request target names, links resolved; None if it leads outside."""
    relative = unquote(target.partition("?")[0]).lstrip("/")
    if "\0" in relative:
        return None
    path = os.path.realpath(os.path.join(root, relative))
    return path if path.startswith(root.rstrip(os.sep) + os.sep) else None


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _main(root: str, port: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _Server(("127.0.0.1", port), partial(_FolderHandler, root)) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
