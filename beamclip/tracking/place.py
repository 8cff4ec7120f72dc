"""Where a run is tracked: its store, and the note of it that the run's folder keeps.

One SQLite file holds all runs of a user on a machine, wherever their --out was: MLflow shows one store at a
time. It lies in the home folder, which outlives checkouts and folders of runs.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote

from beamclip.addresses import without_secrets
from beamclip.files import read_json, write_whole
from beamclip.places import is_address

TRACKING_FILE = "mlflow_run.json"
"""File in the folder of a run: {"run_id": its id in MLflow, "store": address of the store}."""
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
_SQLITE, _DRIVER = "sqlite:///", "sqlite+pysqlite:///"


def tracking_uri(run_dir: Path) -> str:
    """Return the address of a run's store.

    It is MLFLOW_TRACKING_URI; without it, the SQLite file that the run began in, else that of the user, else
    (where no home folder can be written to) one beside `run_dir`.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    return _begun_in(run_dir) or user_store() or sqlite_uri(_beside(run_dir))


def user_home() -> Path:
    """Return the folder that beamclip keeps for this user: below XDG_DATA_HOME or ~/.local/share."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "beamclip"


def user_store() -> str | None:
    """Return the address of the SQLite file for all runs of this user, whose folder is made.

    None if that folder cannot be written to.
    """
    try:
        home = user_home()
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home folder
        return None
    return sqlite_uri(home / DATABASE) if os.access(home, os.W_OK) else None


def _beside(run_dir: Path) -> Path:
    return run_dir.resolve().parent / DATABASE


def _begun_in(run_dir: Path) -> str | None:
    """The SQLite file that a run began in, if it still exists. Older versions kept it beside the run."""
    note = _note(run_dir)
    if "run_id" not in note:
        return None
    store = str(note.get("store", sqlite_uri(_beside(run_dir))))
    file = sqlite_file(store)
    return store if file is not None and file.exists() else None


def notes_folder(place: str) -> Path:
    """Return the folder for the note and the unsent events of a run that writes to a path or an address.

    It is the path itself; for an address, one in the home folder, or among temporary files where that cannot
    be written to, the same each time.
    """
    if not is_address(place):
        return Path(place)
    temporary = Path(tempfile.gettempdir(), f"beamclip-{os.getuid()}")
    home = temporary if user_store() is None else user_home()
    return home / "runs" / hashlib.sha256(place.encode()).hexdigest()[:16]


def tracked_run_id(run_dir: Path) -> str | None:
    """Return the id of the MLflow run that a folder belongs to; None if it was not tracked before."""
    run_id = _note(run_dir).get("run_id")
    return run_id if isinstance(run_id, str) else None


def note_run(run_dir: Path, run_id: str, uri: str) -> None:
    """Note the MLflow run of a folder, by which a resumed run continues it and others name its model."""
    note = {"run_id": run_id, "store": without_secrets(uri)}
    write_whole(run_dir / TRACKING_FILE, json.dumps(note) + "\n")


def _note(run_dir: Path) -> dict[str, object]:
    path = run_dir / TRACKING_FILE
    content = read_json(path) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def sqlite_uri(file: Path) -> str:
    """Return the address that SQLAlchemy and MLflow understand as this file, whatever its path is called."""
    path = file.as_posix()
    if "?" not in path and "%" not in path:
        return f"{_SQLITE}{path}"
    # SQLAlchemy unquotes the path from 2.1 on; before that, only SQLite's own form takes a question mark.
    # With the driver in the address, MLflow does not create a folder of the quoted name.
    from sqlalchemy import make_url

    forms = (f"{_SQLITE}{path}", f"{_DRIVER}{quote(path)}", f"{_DRIVER}file:{quote(path)}?uri=true")
    return next((form for form in forms if make_url(form).database == path), forms[-1])


def sqlite_file(uri: str) -> Path | None:
    """Return the file behind the address of a store, or None if the store is no SQLite file."""
    if not uri.startswith((_SQLITE, _DRIVER)):
        return None
    from sqlalchemy import make_url

    database = make_url(uri).database or ""
    own_form = database.startswith("file:")
    return Path(unquote(database.removeprefix("file:")) if own_form else database).resolve()
