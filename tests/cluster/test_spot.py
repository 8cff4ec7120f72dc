"""The provider's notice that this machine will be taken away, and what is made of it."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from ports import free_port

from beamclip.cluster import spot
from beamclip.cluster.spot import (
    Ec2,
    GoogleCloud,
    Notice,
    RayNode,
    drain_command,
    drain_here,
    find_provider,
    nodes_here,
    watch,
)

IN_2100 = "2100-01-02T03:04:05Z"
IN_2100_UNIX = 4_102_542_245.0


@dataclass
class Metadata:
    """What the server below answers; paths that it does not have are 404."""

    url: str
    ec2: bool = True
    action: str | None = None
    preempted: str | None = None
    broken: int = 0
    asked: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Return status and body, as EC2's and Google Cloud's servers do."""
        self.asked.append(path)
        if self.broken:
            self.broken -= 1
            return 503, ""
        if self.preempted is not None and path == "/computeMetadata/v1/instance/preempted":
            return (200, self.preempted) if headers.get("metadata-flavor") == "Google" else (403, "")
        if not self.ec2:
            return 404, ""
        if path == "/latest/api/token":
            asked_well = method == "PUT" and headers.get("x-aws-ec2-metadata-token-ttl-seconds")
            return (200, "the token") if asked_well else (405, "")
        if headers.get("x-aws-ec2-metadata-token") != "the token":
            return 401, ""
        if path == "/latest/meta-data/spot/instance-action" and self.action is not None:
            return 200, self.action
        if path == "/latest/meta-data/events/recommendations/rebalance":
            return 200, json.dumps({"noticeTime": IN_2100})
        return 404, ""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    state = Metadata("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = state.answer(
                self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield state
        server.shutdown()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "SECONDS_BETWEEN_TRIES", 0.01)


def interruption(action: str = "terminate", time: str = IN_2100) -> str:
    return json.dumps({"action": action, "time": time})


def google(metadata: Metadata) -> Metadata:
    metadata.ec2, metadata.preempted = False, "FALSE"
    return metadata


def test_ec2_gives_no_notice_while_its_answer_is_404(metadata):
    assert Ec2(metadata.url).notice() is None


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_ec2s_notice_says_when_the_machine_ends(metadata, action: str):
    metadata.action = interruption(action)
    assert Ec2(metadata.url).notice() == Notice(f"EC2 will {action} this machine", IN_2100_UNIX)


@pytest.mark.parametrize("answer", ["soon", "[]", '{"action": "stop"}', interruption(time="soon")])
def test_a_notice_of_ec2_that_cannot_be_read_is_shown(metadata, answer: str):
    metadata.action = answer
    with pytest.raises(ValueError, match=r"EC2's notice cannot be read: '.*(soon|\[\]|stop)"):
        Ec2(metadata.url).notice()


def test_a_rebalance_recommendation_is_no_notice_and_not_asked_for(metadata):
    assert Ec2(metadata.url).notice() is None
    assert [path for path in metadata.asked if "rebalance" in path] == []


def test_google_cloud_gives_thirty_seconds(metadata):
    assert GoogleCloud(google(metadata).url).notice() is None
    metadata.preempted = "TRUE"
    before = time.time()
    notice = GoogleCloud(metadata.url).notice()
    assert notice is not None
    assert before + 30 <= notice.ends <= time.time() + 30


def test_another_server_at_google_clouds_address_is_not_google_cloud(metadata):
    google(metadata).preempted = "<html>Sign in to this network</html>"
    with pytest.raises(ValueError, match="neither TRUE nor FALSE: '<html>"):
        GoogleCloud(metadata.url).notice()


def test_a_server_that_does_not_speak_http_does_not_answer():
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"220 mail\r\n"), daemon=True).start()
        with pytest.raises(OSError, match="no HTTP answer"):
            Ec2(f"http://127.0.0.1:{listener.getsockname()[1]}").notice()


def test_the_provider_that_answers_is_found(metadata):
    both = [Ec2(metadata.url), GoogleCloud(metadata.url)]
    assert find_provider(both) is both[0]
    google(metadata)
    assert find_provider(both) is both[1]


def test_a_provider_whose_server_is_late_is_found(metadata):
    metadata.broken = 2
    assert find_provider([Ec2(metadata.url)]) is not None


def test_no_provider_is_one_line_and_exit_code_0(capsys):
    nobody = f"http://127.0.0.1:{free_port()}"
    assert watch([Ec2(nobody), GoogleCloud(nobody)], lambda notice: pytest.fail("drained")) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("neither EC2 nor Google Cloud answers: no notices to wait for")


def test_the_node_is_drained_on_the_notice(metadata, capsys):
    drained: list[Notice] = []

    def drain(notice: Notice) -> bool:
        drained.append(notice)
        return True

    threading.Timer(0.3, lambda: setattr(metadata, "action", interruption())).start()
    assert watch([Ec2(metadata.url, seconds_between_looks=0.05)], drain) == 0
    assert drained == [Notice("EC2 will terminate this machine", IN_2100_UNIX)]
    assert metadata.asked.count("/latest/meta-data/spot/instance-action") > 2
    steps = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert steps[0] == "waiting for a notice of EC2"
    assert steps[1].startswith("EC2 will terminate this machine, in ")
    assert steps[2].startswith("Ray drains this node, ")


def test_ray_is_asked_again_until_it_accepts(metadata):
    google(metadata).preempted = "TRUE"
    answers = iter([False, False, True])
    assert watch([GoogleCloud(metadata.url)], lambda notice: next(answers)) == 0
    assert next(answers, None) is None


def test_when_the_time_is_over_the_exit_code_is_1(metadata, capsys, monkeypatch):
    monkeypatch.setattr(spot, "GOOGLE_NOTICE_S", 0.2)
    google(metadata).preempted = "TRUE"
    assert watch([GoogleCloud(metadata.url)], lambda notice: False) == 1
    assert "the time was over before Ray drained this node" in capsys.readouterr().out


def test_a_server_that_fails_for_a_while_is_asked_again_and_named_once(metadata, capsys):
    provider = Ec2(metadata.url, seconds_between_looks=0.01)
    assert find_provider([provider]) is provider
    metadata.broken, metadata.action = 5, interruption()
    assert spot.wait_for_notice(provider).ends == IN_2100_UNIX
    assert capsys.readouterr().out.count("EC2: no answer, asking again: HTTP Error 503") == 1


NODE = RayNode("ab" * 28, "10.0.0.1:6379")


def test_the_command_is_one_that_the_installed_ray_knows():
    from ray.scripts.scripts import drain_node

    command = drain_command(NODE, Notice("EC2 will stop this machine", time.time() + 100))
    assert command[:4] == [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    options = drain_node.make_context("drain-node", command[4:]).params
    assert 98 <= options.pop("deadline_remaining_seconds") <= 100
    assert options == {
        "address": "10.0.0.1:6379",
        "node_id": "ab" * 28,
        "reason": "DRAIN_NODE_REASON_PREEMPTION",
        "reason_message": "EC2 will stop this machine",
    }


def test_a_deadline_is_never_negative():
    assert drain_command(NODE, Notice("late", time.time() - 10))[-1] == "0"


def command_line(processes: Path, number: int, *words: str) -> None:
    (processes / str(number)).mkdir()
    (processes / str(number) / "cmdline").write_bytes("\0".join([*words, ""]).encode())


def test_a_node_is_known_by_the_command_line_of_its_raylet(tmp_path):
    (tmp_path / "17").mkdir()
    (tmp_path / "self").mkdir()
    flags = ["--node_id=abcd", "--python_worker_command=python --node_id=x", "--gcs-address=10.0.0.1:6379"]
    command_line(tmp_path, 18)
    command_line(tmp_path, 19, "/usr/bin/python", *flags)
    command_line(tmp_path, 20, "/env/ray/core/src/ray/raylet/raylet", "--head", *flags)
    command_line(tmp_path, 21, "raylet", "--version")
    assert nodes_here(tmp_path) == [RayNode("abcd", "10.0.0.1:6379")]


def test_ray_drains_every_node_of_the_machine_and_the_given_head_comes_first(monkeypatch):
    drained: list[tuple[str, str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        words = dict(pairwise(command))
        drained.append((words["--address"], words["--node-id"]))
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(spot, "nodes_here", lambda: [RayNode("a", "head:1"), RayNode("b", "head:1")])
    notice = Notice("stop", time.time() + 10)
    assert drain_here(notice, None)
    assert drain_here(notice, "other:2")
    assert drained == [("head:1", "a"), ("head:1", "b"), ("other:2", "a"), ("other:2", "b")]


def test_the_reason_of_a_refusal_is_shown(monkeypatch, capsys):
    done = subprocess.CompletedProcess(
        [], 1, "Traceback ...\nError: The drain request is not accepted: why\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda command, **options: done)
    monkeypatch.setattr(spot, "nodes_here", lambda: [NODE])
    assert not drain_here(Notice("stop", time.time() + 10), None)
    assert "10.0.0.1:6379 did not drain this node: Error: The drain request is not" in capsys.readouterr().out


def test_a_machine_without_ray_is_drained_of_nothing(monkeypatch, capsys):
    monkeypatch.setattr(spot, "nodes_here", list)
    assert not drain_here(Notice("stop", time.time() + 10), None)
    assert "no node of Ray runs here" in capsys.readouterr().out


def test_waiting_needs_no_library():
    loaded = (
        "import sys, beamclip.cluster.spot; print([m for m in ('ray', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
