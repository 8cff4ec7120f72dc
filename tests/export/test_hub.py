"""Uploads to a server that speaks the hub's endpoints: who we are, new repository, which files, commit."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from ports import free_port

from beamclip.errors import FailedRunError, InputError
from beamclip.export.hub import check_hub, push
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import new_clip


@dataclass
class Hub:
    """What the server was asked and received."""

    address: str
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    full: bool = False


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.headers["Authorization"] != "Bearer hf_right":
                self.answer({"error": "Invalid credentials"}, 401)
            else:
                self.answer({"name": "team", "type": "user", "id": "main", "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                hub.made.append(json.loads(body))
                self.answer({"url": f"{hub.address}/team/birds", "id": "team/birds"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                names = [each["path"] for each in json.loads(body)["files"]]
                rows = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer({"files": rows})
            elif "/commit/" in self.path and not hub.full:
                for line in body.decode().splitlines():
                    row = json.loads(line)
                    if row["key"] == "file":
                        hub.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                oid = "1" * 40
                self.answer(
                    {"success": True, "commitOid": oid, "commitUrl": f"{hub.address}/team/birds/commit/{oid}"}
                )
            else:
                self.answer({"error": "Storage limit reached"}, 403)

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server on the loopback interface that huggingface_hub takes for the hub, and a token for it."""
    port = free_port()
    hub = Hub(f"http://127.0.0.1:{port}")
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(hub))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("public", [False, True])
def test_every_file_of_the_directory_arrives(hub: Hub, tmp_path: Path, public: bool) -> None:
    directory = write_open_clip_dir(new_clip("nano-resnet10t", seed=0), tmp_path / "model")
    check_hub("team/birds")
    assert push(directory, "team/birds", public=public) == f"{hub.address}/team/birds"
    assert hub.made[0]["name"] == "birds"
    assert hub.made[0]["organization"] == "team"
    made = hub.made[0]
    # Versions of huggingface_hub differ in how they say it.
    assert made.get("private", made.get("visibility") == "private") is not public
    assert hub.files == {file.name: file.read_bytes() for file in directory.iterdir()}


def test_an_upload_that_fails_keeps_the_directory_and_says_how_to_try_again(hub: Hub, tmp_path: Path) -> None:
    hub.full = True
    (tmp_path / "README.md").write_text("# A model")
    with pytest.raises(FailedRunError, match=rf"Storage limit.*hf upload team/birds {tmp_path}"):
        push(tmp_path, "team/birds", public=False)


def test_who_cannot_upload_learns_why_before_anything_is_done(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("birds", "team/birds/more", "team/bi rds"):
        with pytest.raises(InputError, match=r"is no name of a repository .* Give ORG/NAME"):
            check_hub(name)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match=r"the hub refuses the token .* Run `hf auth login`"):
        check_hub("team/birds")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match=r"there is no token for the hub\. Run `hf auth login`"):
        check_hub("team/birds")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=r"the hub cannot be reached .* Check the network"):
        check_hub("team/birds")
