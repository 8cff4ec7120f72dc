"""Requests to MLflow, which is imported with the first store; other modules decide when to send them."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from beamclip.tracking.lineage import Dataset, ModelRef
from beamclip.tracking.logged_models import make_model, own_model, used_model
from beamclip.tracking.place import ARTIFACTS, sqlite_file
from beamclip.tracking.view import EXPERIMENT_TAGS

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

T = TypeVar("T")

Event = dict[str, Any]
"""One message to the store, in JSON types: its "kind", and what that kind needs.

metrics: "metrics", at most `MAX_METRICS` rows of (key, value, step, ms since 1970); perhaps "model", whose
metrics they are: `OWN_MODEL` or the fields of a ModelRef; perhaps "dataset", its name and digest.
params: "params", a mapping of texts. artifact: "path", "folder". end: "status", "time_ms".
inputs: "datasets" and "models", lists with the fields of each Dataset and ModelRef.
model: "name", "type", "step", "params", "tags" of the model that the run made. model_files: "path".
"""

_FOR_EVER = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND")
"""Codes of errors that another try would meet again; the last is that of a server that is too old."""

OWN_MODEL = "own"
"""Stands in place of a ModelRef for the model that the run itself made."""

PARENT_TAG = "mlflow.parentRunId"

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
            match event["kind"]:
                case "metrics":
                    self._send_metrics(run_id, event)
                case "params":
                    self._send_params(run_id, event["params"])
                case "artifact":
                    self._send_artifact(run_id, Path(event["path"]), event["folder"])
                case "end":
                    self._client.set_terminated(run_id, event["status"], event["time_ms"])
                case "inputs":
                    self._send_inputs(run_id, event)
                case "model":
                    make_model(self._client, run_id, event)
                case "model_files":
                    self._send_model_files(run_id, Path(event["path"]))

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
                    place = _artifacts(self.uri)
                    made = self._client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)
                    return str(made)
                except Exception:
                    # Another run may have made it on the server a moment ago.
                    found = self._client.get_experiment_by_name(name)
                    if found is None:
                        raise
            # Made by an older version, or by others: it lacks the view of its runs.
            for key in EXPERIMENT_TAGS.keys() - found.tags.keys():
                self._client.set_experiment_tag(found.experiment_id, key, EXPERIMENT_TAGS[key])
        return str(found.experiment_id)

    def _send_metrics(self, run_id: str, event: Event) -> None:
        from mlflow.entities import Metric

        name, digest = event.get("dataset") or (None, None)
        model_id = self._model_id(run_id, event.get("model"))
        metrics = [
            Metric(key, value, time_ms, step, model_id=model_id, dataset_name=name, dataset_digest=digest)
            for key, value, step, time_ms in event["metrics"]
        ]
        self._client.log_batch(run_id, metrics=metrics, synchronous=True)

    def _model_id(self, run_id: str, model: Mapping[str, Any] | str | None) -> str | None:
        if model is None:
            return None
        if isinstance(model, str):
            return own_model(self._client, run_id)
        return used_model(self._client, run_id, ModelRef(**model))

    def _send_inputs(self, run_id: str, event: Event) -> None:
        from mlflow.entities import Dataset as Described
        from mlflow.entities import DatasetInput, InputTag, LoggedModelInput

        datasets = [
            DatasetInput(
                Described(
                    each.name,
                    each.digest,
                    each.source_type,
                    json.dumps({"uri": each.source}),
                    schema=each.schema,
                    profile=each.profile,
                ),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in (Dataset(**fields) for fields in event["datasets"])
        ]
        refs = [ModelRef(**fields) for fields in event["models"]]
        models = [LoggedModelInput(used_model(self._client, run_id, ref)) for ref in refs]
        self._client.log_inputs(run_id, datasets=datasets, models=models)

    def _send_model_files(self, run_id: str, path: Path) -> None:
        model_id = own_model(self._client, run_id)
        if model_id is None:
            raise Refused(f"{path}: its model was refused")
        if not path.is_dir():
            raise Refused(f"{path} is gone")
        self._client.log_model_artifacts(model_id, str(path))
        self._client.finalize_logged_model(model_id, "READY")

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
    # It would announce each retry; the end of them is told once, by Link.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    with _first_use(uri):
        return MlflowClient(uri)


def _artifacts(uri: str) -> str | None:
    # For a SQLite file MLflow would use the current folder; a server has its own place.
    database = sqlite_file(uri)
    return (database.parent / ARTIFACTS).as_uri() if database else None


def _first_use(uri: str) -> AbstractContextManager[object]:
    """Lock a SQLite file while its tables are made: without, all but one of several first users fail."""
    database = sqlite_file(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(database.with_name(f".{database.name}.lock"))


@contextmanager
def _sorted_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", None) in _FOR_EVER:
            raise Refused(f"{what}: {first_line(error)}") from error
        raise


def first_line(error: BaseException) -> str:
    """Return why a request failed, in one line of at most 300 characters: MLflow quotes whole responses.

    Where nothing answers, it is what the operating system said, instead of the texts of four libraries.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionError, TimeoutError, socket.gaierror)) and cause.strerror:
            return f"no answer ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `items` in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
