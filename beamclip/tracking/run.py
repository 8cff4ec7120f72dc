"""The run as the driver sees it: records go into a queue, and a thread sends them to the store."""

import os
import posixpath
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.lineage import Dataset, ModelRef
from beamclip.tracking.link import Link
from beamclip.tracking.origin import origin_tags
from beamclip.tracking.place import note_run, tracking_uri
from beamclip.tracking.store import Event, RunRecord, first_line
from beamclip.tracking.unsent import UnsentFile

CLOSE_WITHIN_S = 60.0
"""Seconds that `Tracking.close` goes on sending; the rest is kept in the run directory."""
MAX_PARAM_LENGTH = 6000
"""Longest value of a param that MLflow stores, characters."""
DEFAULT_EXPERIMENT = "beamclip"
MAX_KEY_LENGTH = 250
"""Longest name that MLflow stores, characters."""

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracking:
    """One MLflow run. Only `run_id` and `close` wait for the store, for a limited time."""

    def __init__(
        self,
        link: Link,
        run_dir: Path,
        params: Mapping[str, str],
        system_metrics: "Callable[[], _SystemMetrics | None] | None",
    ) -> None:
        """Start the sending thread; runs are begun by `start`.

        Args:
            run_dir: the run's folder, where its id is noted as soon as it is known.
            params: as they are logged; the run's model gets them too.
            system_metrics: makes the monitor, called after the first try to reach the store.
        """
        self._link = link
        self._run_dir = run_dir
        self._params = params
        self._noted = False
        self._system: _SystemMetrics | None = None
        self._system_metrics = system_metrics
        self._tried = threading.Event()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="beamclip-tracking", daemon=True)
        self._thread.start()

    @classmethod
    def start(
        cls,
        config: TrackingConfig,
        *,
        run_dir: Path,
        params: Mapping[str, object],
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        uri: str | None = None,
        began: float | None = None,
    ) -> "Tracking":
        """Begin or resume a run; the store is contacted in the background.

        Args:
            config: names of the run and its experiment, and whether system metrics are logged.
            run_dir: the run's folder, created if missing; what cannot be sent is kept there.
            params: settings by name; a value is logged as text of at most 6,000 characters. A value that
                differs from the one the run already has becomes a tag `resumed.NAME`.
            tags: MLflow tags of a new run, beside those that say where it comes from and where its folder is.
            run_id: the run to resume, whatever its status. Unless config.experiment is given, MLFLOW_RUN_ID
                takes precedence; it is removed from the environment, as by MLflow itself: it names one run.
            uri: of the store, by default `tracking_uri(run_dir)`.
            began: time.time() when a new run began; by default now.
        """
        uri = uri or tracking_uri(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = str(run_dir.resolve())
        name = config.run_name or run_dir.resolve().name
        experiment, experiment_id = _experiment(config)
        if config.experiment is None:
            run_id = os.environ.pop("MLFLOW_RUN_ID", None) or run_id
        start_ms = _now_ms() if began is None else int(1000 * began)
        run = RunRecord(
            run_id,
            experiment,
            name,
            {**origin_tags(), "folder": folder, **(tags or {})},
            start_ms,
            experiment_id,
        )
        link = Link(uri, UnsentFile(run_dir), run)
        system = partial(_system_metrics, link, uri, resumed=run_id is not None)
        texts = {_valid_name(key): str(value)[:MAX_PARAM_LENGTH] for key, value in params.items()}
        tracking = cls(link, run_dir, texts, system if config.system_metrics else None)
        tracking._events.put({"kind": "params", "params": texts})
        return tracking

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, or None if the store was not reached so far; waits for the first try."""
        self._tried.wait()
        return self._link.run.id

    def log(
        self,
        records: Sequence[Mapping[str, float]],
        *,
        model: ModelRef | Literal["own"] | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        """Log metrics; each record has a "step". Characters that MLflow refuses in names become "_".

        Args:
            model: whose metrics they are, beside the run's: another run's, or "own", given to `model` before.
            dataset: what they were computed on.
        """
        event = _metrics_event(records)
        if model is not None:
            event["model"] = asdict(model) if isinstance(model, ModelRef) else model
        if dataset is not None:
            event["dataset"] = [dataset.name, dataset.digest]
        self._events.put(event)

    def inputs(self, *, datasets: Sequence[Dataset] = (), models: Sequence[ModelRef] = ()) -> None:
        """Link data sets that the run reads or writes, and models that it uses."""
        self._events.put(
            {
                "kind": "inputs",
                "datasets": [asdict(each) for each in datasets],
                "models": [asdict(each) for each in models],
            }
        )

    def model(self, path: Path, name: str, kind: str, step: int) -> None:
        """Make the run's logged model, with the content of a folder as its artifacts.

        Args:
            kind: MLflow's type of a model, by which models are searched for.
            step: of the training, at which the model was taken.
        """
        about = {
            "name": name,
            "type": kind,
            "step": step,
            "tags": {"folder": str(path.resolve())},
            "params": dict(self._params),
        }
        self._events.put({"kind": "model", **about})
        self._events.put({"kind": "model_files", "path": str(path.resolve())})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or the content of a folder, to `folder` in the run's artifacts."""
        self._events.put({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def close(self, status: EndStatus = "FINISHED") -> None:
        """End the run, and return when everything is sent or kept. Closing again does nothing."""
        if not self._thread.is_alive():
            return
        self._link.give_up_at = time.monotonic() + CLOSE_WITHIN_S
        self._events.put({"kind": "end", "status": status, "time_ms": _now_ms()})
        self._events.put(None)
        self._thread.join()

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _work(self) -> None:
        self._link.open()
        self._tried.set()
        if self._system_metrics is not None:
            self._system = self._system_metrics()
        more = True
        while more:
            self._note_run()
            events, more = self._take()
            self._link.deliver(events)
        self._note_run()

    def _note_run(self) -> None:
        run_id = self._link.run.id
        if self._noted or run_id is None:
            return
        self._noted = True
        try:
            note_run(self._run_dir, run_id, self._link.uri)
        except Exception as error:
            self._link.warn("run", f"the run {run_id} is not noted in its folder: {first_line(error)}")

    def _take(self) -> tuple[list[Event], bool]:
        """Take the waiting events, and whether more may come; waits until system metrics are due at most."""
        events: list[Event] = []
        try:
            event = self._events.get(timeout=self._system.due_in() if self._system else None)
            while event is not None:
                events.append(event)
                event = self._events.get_nowait()
            return events, False
        except queue.Empty:
            return events + self._sample(), True

    def _sample(self) -> list[Event]:
        if self._system is None or self._system.due_in() > 0:
            return []
        try:
            return [_metrics_event([self._system.sample()])]
        except Exception as error:
            self._link.warn("system", f"no more system metrics: {first_line(error)}")
            self._system = None
            return []


class _SystemMetrics:
    """MLflow's system monitor, sampled by our thread.

    Its own thread would ask the server for the run every 10 seconds, and end at the first failure.
    """

    def __init__(self, run_id: str | None, uri: str, *, resumed: bool) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(run_id or "", tracking_uri=uri, resume_logging=resumed)
        self._monitor.mlflow_logger = self
        self._due_at = time.monotonic() + self._monitor.sampling_interval
        self._record: dict[str, float] = {}

    def due_in(self) -> float:
        """Seconds to the next sample, not negative."""
        return max(0.0, self._due_at - time.monotonic())

    def sample(self) -> dict[str, float]:
        self._due_at = time.monotonic() + self._monitor.sampling_interval
        self._monitor.collect_metrics()
        self._monitor.publish_metrics(self._monitor.aggregate_metrics())
        return self._record

    def record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Receive what the monitor would give to a logger of its own."""
        self._record = {**metrics, "step": step}


def _system_metrics(link: Link, uri: str, *, resumed: bool) -> _SystemMetrics | None:
    try:
        return _SystemMetrics(link.run.id, uri, resumed=resumed and link.open() is not None)
    except Exception as error:
        link.warn("system", f"no system metrics: {first_line(error)}")
        return None


def _experiment(config: TrackingConfig) -> tuple[str, str | None]:
    """Name of the experiment to find or create, and id of an existing one, which takes precedence."""
    name = config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return name or DEFAULT_EXPERIMENT, None if name else os.environ.get("MLFLOW_EXPERIMENT_ID") or None


def _metrics_event(records: Iterable[Mapping[str, float]]) -> Event:
    now = _now_ms()
    rows: list[tuple[str, float, int, int]] = []
    for record in records:
        step = int(record["step"])
        rows += [
            (_valid_name(key), float(value), step, now) for key, value in record.items() if key != "step"
        ]
    return {"kind": "metrics", "metrics": rows}


def _valid_name(name: str) -> str:
    """Replace what MLflow refuses in a name: some characters, and paths that are not normalised."""
    plain = posixpath.normpath(re.sub(r"[^\w./ :-]", "_", name)[:MAX_KEY_LENGTH]).lstrip("/")
    return plain.replace("..", "_") if plain not in ("", ".") else "_"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
