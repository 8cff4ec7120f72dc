"""Tracking through the death of its server: two runs, an MLflow server that is killed and comes back."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ports import free_port

from beamclip.tracking import UNSENT_FILE, Tracking, link, replay
from beamclip.tracking.config import TrackingConfig

pytestmark = pytest.mark.slow

QUIET = TrackingConfig(system_metrics=False)


def client_of(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def history(uri: str, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client_of(uri).get_metric_history(run_id, key))


def records(steps: range) -> list[dict[str, float]]:
    return [{"step": step, "loss": step / 4} for step in steps]


def points(steps: range) -> list[tuple[int, float]]:
    return [(step, step / 4) for step in steps]


def refuse(message: str) -> None:
    pytest.fail(f"refused: {message}")


@dataclass
class Server:
    """An MLflow server on this machine; a restart keeps the address and the database."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = [f"--backend-store-uri=sqlite:///{self.folder}/server.db"]
        stores += [f"--artifacts-destination={self.folder}/artifacts"]
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options, *stores],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        while self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def outage(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Two runs whose server is killed midway: one ends before the server is back, one lives through it."""
    folder = tmp_path_factory.mktemp("outage")
    server = Server(folder, free_port())
    log = logging.getLogger("beamclip.tracking")
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setattr(link, "RETRY_AFTER_S", 0.0)
        log.addHandler(handler)
        try:
            server.start()
            yield live_through_an_outage(server, folder, warnings)
        finally:
            log.removeHandler(handler)
            server.kill()


def live_through_an_outage(server: Server, folder: Path, warnings: list[str]) -> SimpleNamespace:
    (folder / "plot.txt").write_text("a plot")
    runs = {
        name: Tracking.start(QUIET, run_dir=folder / name, params={"seed": 1})
        for name in ("ended", "lasting")
    }
    for run in runs.values():
        run.log(records(range(5)))
    wait_for(lambda: all(len(history(server.uri, run.run_id)) == 5 for run in runs.values()))
    server.kill()
    for run in runs.values():
        run.log(records(range(5, 8)))
    wait_for(lambda: all((folder / name / UNSENT_FILE).exists() for name in runs))
    for run in runs.values():
        run.log(records(range(8, 10)))
    runs["ended"].artifact(folder / "plot.txt", "plots")
    runs["ended"].close()
    story = SimpleNamespace(uri=server.uri, folder=folder, told=list(warnings), **runs)
    story.unsent = (folder / "ended" / UNSENT_FILE).read_text()
    server.start()
    runs["lasting"].log(records(range(10, 12)))
    runs["lasting"].close()
    story.replayed = replay(folder / "ended", refuse)
    return story


def wait_for(condition: Callable[[], bool]) -> None:
    """As long as it takes on a busy machine, to the timeout of the tests."""
    while not condition():
        time.sleep(0.05)


def test_a_killed_server_is_told_once_a_run(outage):
    assert len(outage.told) == 2
    assert all("The run goes on" in message for message in outage.told)


def test_what_a_killed_server_missed_is_in_the_unsent_file(outage):
    header, *events = [json.loads(line) for line in outage.unsent.splitlines()]
    steps = [row[2] for event in events if event["kind"] == "metrics" for row in event["metrics"]]
    assert header["id"] == outage.ended.run_id
    assert steps == list(range(5, 10))
    assert sorted(event["kind"] for event in events if event["kind"] != "metrics") == ["artifact", "end"]


def test_a_replay_completes_the_run_without_duplicates(outage):
    run = client_of(outage.uri).get_run(outage.replayed)
    assert outage.replayed == outage.ended.run_id
    assert history(outage.uri, outage.replayed) == points(range(10))
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "1"})
    assert [item.path for item in client_of(outage.uri).list_artifacts(outage.replayed, "plots")] == [
        "plots/plot.txt"
    ]
    assert not (outage.folder / "ended" / UNSENT_FILE).exists()


def test_a_run_that_lives_through_an_outage_completes_itself(outage):
    run_id = outage.lasting.run_id
    assert history(outage.uri, run_id) == points(range(12))
    assert client_of(outage.uri).get_run(run_id).info.status == "FINISHED"
    assert not (outage.folder / "lasting" / UNSENT_FILE).exists()
