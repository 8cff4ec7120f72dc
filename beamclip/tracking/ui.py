"""Show the runs of this machine in MLflow's pages: `python -m beamclip.tracking ui`, or `make ui`."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from beamclip.addresses import without_secrets
from beamclip.errors import InputError
from beamclip.tracking.place import ARTIFACTS, DATABASE, sqlite_file, sqlite_uri, user_home, user_store
from beamclip.tracking.run import DEFAULT_EXPERIMENT
from beamclip.tracking.view import VIEW_TAG, runs_page

START_WITHIN_S = 120.0
"""Seconds that the server may take until it answers."""


def show(store: str | None, port: int, tell: Callable[[str], None]) -> int:
    """Serve the pages of a store until Ctrl-C, or say where a server shows them; return an exit code.

    Args:
        store: a SQLite file or the address of a store; by default MLFLOW_TRACKING_URI, else the user's.
        port: of this machine, for the pages of a SQLite file.
        tell: called with each line for the user.

    Raises:
        InputError: there is no such store, or the port is taken.
    """
    uri = _address(store)
    if uri.startswith(("http://", "https://")):
        tell(f"The runs are on a server: {without_secrets(uri)}. Open it there.")
        return 0
    database = sqlite_file(uri)
    if database is None:
        raise InputError(
            f"{without_secrets(uri)}: neither a SQLite file nor a server. Show it by: mlflow server "
            "--backend-store-uri ADDRESS"
        )
    if not database.exists():
        known = "".join(f"\n{line}" for line in _others(database))
        raise InputError(
            f"{database}: not there yet. Give another store, or train first: make quickstart{known}"
        )
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port {port}: {error.strerror}. Give another: make ui UI_PORT={port + 1}"
            ) from error
    return _serve(uri, database, port, tell)


def _address(store: str | None) -> str:
    given = store or os.environ.get("MLFLOW_TRACKING_URI")
    if given is None:
        return user_store() or sqlite_uri(Path("runs", DATABASE).resolve())
    return given if "://" in given else sqlite_uri(Path(given).expanduser().resolve())


def _serve(uri: str, database: Path, port: int, tell: Callable[[str], None]) -> int:
    server = f"http://127.0.0.1:{port}"
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", uri),
        *("--artifacts-destination", str(database.parent / ARTIFACTS)),
        *("--uvicorn-opts", "--log-level warning"),
    ]
    with tempfile.TemporaryFile() as log:
        # What the server says of itself would hide the address.
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        return _wait(process, log, server, database, tell)


def _wait(
    process: "subprocess.Popen[bytes]",
    log: IO[bytes],
    server: str,
    database: Path,
    tell: Callable[[str], None],
) -> int:
    """Tell the user where the server shows the runs, or why it ended; return its exit code."""
    try:
        if _answers(f"{server}/health", process):
            runs = "".join(f", {number:,} {name}" for number, name in _counts(database))
            tell(f"{database}{runs}")
            for line in _others(database):
                tell(line)
            tell(f"{_page(server, database)}  (Ctrl-C ends)")
            return process.wait()
        process.terminate()
        log.seek(0)
        sys.stderr.write(log.read().decode(errors="replace"))
        return process.wait() or 1
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()


def _answers(address: str, process: "subprocess.Popen[bytes]") -> bool:
    until = time.monotonic() + START_WITHIN_S
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return True
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    return False


def _rows(database: Path, query: str) -> list[tuple[str, int]]:
    """The rows of a query; none if the file is not one of MLflow's."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return [*connection.execute(query)]
    except sqlite3.Error:
        return []


def _page(server: str, database: Path) -> str:
    """Address of the runs of an experiment: beamclip's, else the one with the newest run."""
    rows = _rows(
        database,
        "SELECT experiments.name, experiments.experiment_id FROM runs JOIN experiments USING (experiment_id) "
        "WHERE runs.lifecycle_stage = 'active' ORDER BY runs.start_time DESC",
    )
    ids = dict(reversed(rows))
    number = ids.get(DEFAULT_EXPERIMENT, rows[0][1] if rows else 0)
    with_view = (VIEW_TAG, number) in _rows(database, "SELECT key, experiment_id FROM experiment_tags")
    return runs_page(server, str(number), with_view=with_view)


def _counts(database: Path) -> list[tuple[int, str]]:
    """The number of runs, as `12 runs`."""
    rows = _rows(database, "SELECT 'runs', COUNT(*) FROM runs WHERE lifecycle_stage = 'active'")
    return [(number, name if number != 1 else "run") for name, number in rows]


def _others(shown: Path) -> Iterable[str]:
    """A line for each further store found: the user's, and those beside runs, as older versions left."""
    here = Path.cwd()
    candidates = [user_home() / DATABASE, here / DATABASE, *sorted(here.glob(f"*/{DATABASE}"))]
    for database in dict.fromkeys(path.resolve() for path in candidates):
        counts = _counts(database) if database != shown and database.exists() else []
        for number, name in counts:
            if number:
                yield f"{number:,} more {name} in another store: make ui STORE={database}"
