"""Requests to MLflow, which is imported with the first store; other modules decide when to send them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

Event = dict[str, Any]
"""One message to the store, in JSON types: its "kind", and what that kind needs.

metrics: "metrics", at most `MAX_METRICS` rows of (key, value, step, ms since 1970).
params: "params", a mapping of texts. artifact: "path", "folder". end: "status", "time_ms".
"""

PARENT_TAG = "mlflow.parentRunId"
_SQLITE, _DRIVER = "sqlite:///", "sqlite+pysqlite:///"

MAX_METRICS = 1000
"""Metrics that MLflow takes in one request."""
MAX_PARAMS = 100
"""Params or tags that MLflow takes in one request."""


@dataclass(frozen=True)
class RunRecord:
    """What a store needs to create a run, or to find it by its id."""

    id: str | None
    experiment: str
    name: str
    tags: dict[str, str]
    start_ms: int
    experiment_id: str | None = None
    """Id of an existing experiment; takes precedence over its name."""


class Refused(Exception):
    """The store answered, and will never accept what it was given."""


def tracking_uri(run_dir: Path) -> str:
    """Return the address of a run's store: MLFLOW_TRACKING_URI, else a SQLite file beside `run_dir`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(run_dir.resolve().parent / "mlflow.db")


def _sqlite_uri(file: Path) -> str:
    path = file.as_posix()
    if "?" not in path and "%" not in path:
        return f"{_SQLITE}{path}"
    # SQLAlchemy unquotes the path from 2.1 on; before that, only SQLite's own form takes a question mark.
    # With the driver in the address, MLflow does not create a folder of the quoted name.
    from sqlalchemy import make_url

    forms = (f"{_SQLITE}{path}", f"{_DRIVER}{quote(path)}", f"{_DRIVER}file:{quote(path)}?uri=true")
    return next((form for form in forms if make_url(form).database == path), forms[-1])


class Store:
    """An MLflow store. `Refused` from a method means "never"; any other exception counts as "not now"."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = _connect(uri)

    def open_run(self, run: RunRecord) -> str:
        """Mark `run` as running, creating it if it has no id yet, and return its id."""
        if run.id is not None:
            with _sorted_errors(f"run {run.id}"):
                self._client.update_run(run.id, status="RUNNING")
                self._send_tags(run.id, run.tags)
            return run.id
        experiment = self._experiment_of_parent(run) or run.experiment_id or self._experiment(run.experiment)
        made = self._client.create_run(experiment, start_time=run.start_ms, tags=run.tags, run_name=run.name)
        return str(made.info.run_id)

    def send(self, run_id: str, event: Event) -> None:
        """Send one event to a run.

        Raises:
            Refused: the store will never accept the event, or the file of an artifact is gone.
            Exception: whatever MLflow raises while the store cannot be reached.
        """
        with _sorted_errors(f"{event['kind']} of run {run_id}"):
            if event["kind"] == "metrics":
                self._send_metrics(run_id, event["metrics"])
            elif event["kind"] == "params":
                self._send_params(run_id, event["params"])
            elif event["kind"] == "artifact":
                self._send_artifact(run_id, Path(event["path"]), event["folder"])
            elif event["kind"] == "end":
                self._client.set_terminated(run_id, event["status"], event["time_ms"])

    def _experiment_of_parent(self, run: RunRecord) -> str | None:
        """Return the parent's experiment: only there does MLflow show a run below its parent."""
        if PARENT_TAG not in run.tags:
            return None
        try:
            return str(self._client.get_run(run.tags[PARENT_TAG]).info.experiment_id)
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _experiment(self, name: str) -> str:
        with _first_use(self.uri):
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    return str(self._client.create_experiment(name, artifact_location=_artifacts(self.uri)))
                except Exception:
                    # Another run may have made it on the server a moment ago.
                    found = self._client.get_experiment_by_name(name)
                    if found is None:
                        raise
        return str(found.experiment_id)

    def _send_metrics(self, run_id: str, rows: Sequence[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, value, time_ms, step) for key, value, step, time_ms in rows]
        self._client.log_batch(run_id, metrics=metrics, synchronous=True)

    def _send_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        # MLflow refuses a second value for a param, and a resumed run may have one, say more epochs.
        known = self._client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for part in parts(new, MAX_PARAMS):
            self._client.log_batch(run_id, params=part, synchronous=True)
        self._send_tags(
            run_id,
            {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value},
        )

    def _send_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for part in parts([RunTag(key, value) for key, value in tags.items()], MAX_PARAMS):
            self._client.log_batch(run_id, tags=part, synchronous=True)

    def _send_artifact(self, run_id: str, path: Path, folder: str | None) -> None:
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), folder)
        elif path.exists():
            self._client.log_artifact(run_id, str(path), folder)
        else:
            raise Refused(f"{path} is gone")


def _connect(uri: str) -> "MlflowClient":
    # Set before the import. With MLflow's own values, each call to a server that is down blocks for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow.tracking import MlflowClient

    with _first_use(uri):
        return MlflowClient(uri)


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith((_SQLITE, _DRIVER)):
        return None
    from sqlalchemy import make_url

    database = make_url(uri).database or ""
    own_form = database.startswith("file:")
    return Path(unquote(database.removeprefix("file:")) if own_form else database).resolve()


def _artifacts(uri: str) -> str | None:
    # For a SQLite file MLflow would use the current folder; a server has its own place.
    database = _sqlite_file(uri)
    return (database.parent / "mlartifacts").as_uri() if database else None


def _first_use(uri: str) -> AbstractContextManager[object]:
    """Lock a SQLite file while its tables are made: without, all but one of several first users fail."""
    database = _sqlite_file(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(database.with_name(f".{database.name}.lock"))


@contextmanager
def _sorted_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise Refused(f"{what}: {first_line(error)}") from error
        raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to 300 characters: MLflow quotes whole responses."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `items` in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
