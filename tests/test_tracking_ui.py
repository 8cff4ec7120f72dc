"""`python -m beamclip.tracking ui`: which store it shows, which page it names, and what else it finds."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from ports import free_port

from beamclip.errors import InputError
from beamclip.tracking import Tracking, tracking_uri
from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.place import sqlite_file
from beamclip.tracking.ui import _others, _page, show
from beamclip.tracking.view import VIEW

QUIET = TrackingConfig(system_metrics=False)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's store, with one run: a store of these tests alone."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "home"))
        with Tracking.start(QUIET, run_dir=folder / "shown", params={}):
            pass
        file = sqlite_file(tracking_uri(folder / "any"))
        assert file is not None
        yield file


def refuse(line: str) -> None:
    pytest.fail(line)


def test_the_page_is_the_table_of_trainings_with_its_scores(database: Path) -> None:
    server, _, page = _page("http://127.0.0.1:5000/", database).partition("/#/")
    assert server == "http://127.0.0.1:5000"
    path, _, asked = page.partition("?")
    assert re.fullmatch(r"experiments/\d+/runs", path)
    assert parse_qs(asked) == {"workflowType": ["machine_learning"], "viewStateShareKey": [VIEW]}


def test_stores_beside_runs_are_named_with_their_runs(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(database.read_bytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mlflow.db").write_text("not a database")
    monkeypatch.chdir(tmp_path)
    (line,) = _others(database)
    # How many runs there are depends on the tests before.
    assert re.fullmatch(rf"\d+ more runs? in another store: make ui STORE={tmp_path}/runs/mlflow.db", line)
    assert [text.rpartition("=")[2] for text in _others(tmp_path / "runs" / "mlflow.db")] == [str(database)]


def test_a_store_that_is_not_there_or_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=f"{tmp_path}/mlflow.db: not there yet. Give another store, or train"
    ):
        show(str(tmp_path / "mlflow.db"), free_port(), refuse)
    with pytest.raises(InputError, match="neither a SQLite file nor a server"):
        show("postgresql://user:secret@host/runs", free_port(), refuse)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    lines = list[str]()
    assert show(None, free_port(), lines.append) == 0
    assert "127.0.0.1:1" in lines[0]
    assert "secret" not in lines[0]


def test_a_port_that_is_taken(database: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=f"port {port}: Address already in use. Give another: make ui UI_PORT"
        ):
            show(str(database), port, refuse)


@pytest.mark.slow
def test_the_pages_are_served_until_ctrl_c(database: Path) -> None:
    command = [sys.executable, "-m", "beamclip.tracking", "ui", "--port", str(free_port())]
    ui = subprocess.Popen(command, stdout=-1, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    assert ui.stdout is not None
    try:
        assert ui.stdout.readline().startswith(f"{database}, ")
        address = next(line for line in ui.stdout if line.startswith("http://")).split()[0]
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
    finally:
        os.killpg(ui.pid, signal.SIGINT)
    assert ui.wait() == 0
