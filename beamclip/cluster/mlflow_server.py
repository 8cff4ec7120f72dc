"""The MLflow server of a cluster, on its head: `python -m beamclip.cluster.mlflow_server`.

It listens on 127.0.0.1 alone, so that nobody reaches it without the key to the head; `make ui CLUSTER=...`
opens a tunnel. Runs are kept in a SQLite file, which serves one team well: commands send a few requests a
minute. The head and its disk go with `ray down`, so the file is copied to the storage of the cluster while
the server runs, and a new head begins with that copy. Artifacts are in the storage from the start.
"""

import argparse
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

from beamclip.errors import InputError
from beamclip.files import write_whole
from beamclip.places import Folder, one_line
from beamclip.storage import VARIABLE, storage
from beamclip.tracking.origin import CLUSTER

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
SAVE_EVERY_S = 30.0
"""Seconds between two looks at whether the database has changed."""


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m beamclip.cluster.mlflow_server", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=["serve", "save"],
        default="serve",
        help="serve: until SIGTERM. save: copy the database to the storage now",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("~/.beamclip-mlflow").expanduser(), help="of the database"
    )
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--storage", default=storage(), help=f"address or folder; by default {VARIABLE}")
    parser.add_argument(
        "--cluster", default=os.environ.get(CLUSTER) or "beamclip", help="name of the cluster, as in its file"
    )
    parser.add_argument("--read-only", action="store_true", help="save nothing: for a look after ray down")
    given = parser.parse_args(argv)
    if given.storage is None:
        print(f"error: no storage. Give --storage, or set {VARIABLE}.", file=sys.stderr)
        return 2
    # Two clusters may have one storage.
    kept = Folder(given.storage.rstrip("/")).join("mlflow").join(given.cluster)
    database = given.folder / DATABASE
    if given.command == "save":
        return save(database, kept)
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        restore(database, kept, replace=given.read_only)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return serve(database, kept, given.port, read_only=given.read_only)


def restore(database: Path, kept: Folder, *, replace: bool) -> None:
    """Begin with the copy in the storage, if there is one and no database here.

    Args:
        replace: take the copy even if there is a database, and nothing else.

    Raises:
        InputError: with `replace`, there is no copy.
    """
    if database.exists() and not replace:
        return
    content = kept.read(DATABASE)
    if content is None and replace:
        raise InputError(f"{kept.place}: no {DATABASE} there. Give the storage and the name of a cluster.")
    if content is not None:
        for suffix in ("-wal", "-shm", "-journal"):
            database.with_name(f"{DATABASE}{suffix}").unlink(missing_ok=True)
        write_whole(database, lambda path: path.write_bytes(content))


def save(database: Path, kept: Folder) -> int:
    """Copy the database to the storage, as it is at one moment; return an exit code.

    The server may write to it meanwhile (https://sqlite.org/backup.html).
    """
    if not database.exists():
        return 0
    copy = database.with_name(f"{DATABASE}.{uuid4().hex}.copy")
    try:
        with (
            contextlib.closing(sqlite3.connect(database)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        kept.fs.makedirs(kept.path(""), exist_ok=True)
        kept.write(DATABASE, copy.read_bytes())
    except Exception as error:  # each store has errors of its own; the next look tries again
        print(f"{kept.place}/{DATABASE}: not saved: {one_line(error)}", file=sys.stderr, flush=True)
        return 1
    finally:
        copy.unlink(missing_ok=True)
    return 0


def serve(database: Path, kept: Folder, port: int, *, read_only: bool) -> int:
    """Run the server until SIGTERM, and keep its database in the storage; return an exit code."""
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{database}"),
            *("--artifacts-destination", kept.join(ARTIFACTS).place),
        ],
        env={**os.environ, **environment},
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    saved = changed_at(database)
    while server.poll() is None and not stopped.wait(1.0 if read_only else SAVE_EVERY_S):
        changed = changed_at(database)
        if not read_only and changed != saved and save(database, kept) == 0:
            saved = changed
    server.terminate()
    code = server.wait()
    if not read_only:
        save(database, kept)
    return 0 if stopped.is_set() else code


def changed_at(database: Path) -> float:
    """When the database was last written to, seconds since 1970; 0 if it is not there."""
    files = (database, database.with_name(f"{DATABASE}-wal"))
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
