"""The MLflow server of a head: its database survives the head."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from ports import free_port

from beamclip.cluster.mlflow_server import DATABASE, main, restore, save
from beamclip.places import Folder


def rows(database: Path) -> list[tuple[str]]:
    with sqlite3.connect(database) as connection:
        return connection.execute("select text from notes").fetchall()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "head" / DATABASE
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("create table notes (text)")
        connection.execute("insert into notes values ('kept')")
    return path


def test_what_was_saved_is_there_on_the_next_head(database: Path, tmp_path: Path) -> None:
    kept = Folder(f"{tmp_path}/storage/mlflow")
    assert save(database, kept) == 0
    new = tmp_path / "new" / DATABASE
    new.parent.mkdir()
    restore(new, kept, replace=False)
    assert rows(new) == [("kept",)]


def test_a_database_that_is_written_to_is_saved_as_of_one_moment(database: Path, tmp_path: Path) -> None:
    with sqlite3.connect(database) as writer:
        writer.execute("insert into notes values ('not yet')")
        assert save(database, Folder(f"{tmp_path}/storage")) == 0
        assert rows(tmp_path / "storage" / DATABASE) == [("kept",)]


def test_a_database_of_this_head_is_not_replaced(database: Path, tmp_path: Path) -> None:
    kept = Folder(f"{tmp_path}/storage")
    save(database, kept)
    with sqlite3.connect(database) as connection:
        connection.execute("insert into notes values ('newer')")
    restore(database, kept, replace=False)
    assert rows(database) == [("kept",), ("newer",)]
    restore(database, kept, replace=True)
    assert rows(database) == [("kept",)]


def test_a_storage_that_fails_is_told_and_tried_again(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "storage").write_text("no folder")
    assert save(database, Folder(f"{tmp_path}/storage")) == 1
    assert "not saved" in capsys.readouterr().err
    assert list(database.parent.iterdir()) == [database]


def test_without_a_storage_it_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BEAMCLIP_STORAGE", raising=False)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: no storage. Give --storage, or set BEAMCLIP_STORAGE.\n"


@pytest.mark.slow
def test_a_server_that_is_stopped_has_saved_its_runs(tmp_path: Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "beamclip.cluster.mlflow_server",
            "--port",
            str(port),
            "--folder",
            str(tmp_path / "head"),
            "--storage",
            str(tmp_path / "storage"),
        ],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_TRACKING_URI": ""},
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    assert code == 0
    with sqlite3.connect(tmp_path / "storage" / "mlflow" / "beamclip" / DATABASE) as connection:
        assert connection.execute("select count(*) from experiments").fetchone() == (1,)
