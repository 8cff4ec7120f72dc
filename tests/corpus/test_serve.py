"""The loopback server of a folder."""

import urllib.request
from http.client import HTTPConnection
from pathlib import Path

import pytest

from beamclip.corpus.serve import serve_folder
from beamclip.errors import InputError

BODY = bytes(range(256)) * 20


def test_folder_server_serves_files_and_nothing_above(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a b").mkdir(parents=True)
    (root / "a b" / "x.png").write_bytes(BODY)
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    with serve_folder(root) as address:
        connection = HTTPConnection(address.removeprefix("http://"))
        replies = {}
        above = ("/../secret", "/%2e%2e/secret", "/link", "//etc/passwd")
        for path in ("/a%20b/x.png", *above, "/a%20b", "/%00"):
            connection.request("GET", path)  # one connection: keep-alive
            response = connection.getresponse()
            replies[path] = response.status, response.read()
        connection.close()
    assert replies.pop("/a%20b/x.png") == (200, BODY)
    assert {status for status, _ in replies.values()} == {404}


def test_folder_server_ends_with_its_block(tmp_path: Path) -> None:
    with serve_folder(tmp_path) as address:
        pass
    with pytest.raises(OSError, match="refused"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=2)


def test_folder_server_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"), serve_folder(tmp_path / "absent"):
        pass
