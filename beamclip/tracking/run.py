"""The run as the driver sees it: records go into a queue, and a thread sends them to the store."""

import os
import posixpath
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.link import Link
from beamclip.tracking.origin import origin_tags
from beamclip.tracking.store import Event, RunRecord, first_line, tracking_uri
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
        on_run: Callable[[str], None] | None,
        system_metrics: "Callable[[], _SystemMetrics | None] | None",
    ) -> None:
        """Start the sending thread; runs are begun by `start`.

        Args:
            on_run: see `start`.
            system_metrics: makes the monitor, called after the first try to reach the store.
        """
        self._link = link
        self._on_run = on_run
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
        on_run: Callable[[str], None] | None = None,
    ) -> "Tracking":
        """Begin or resume a run; the store is contacted in the background.

        Args:
            config: names of the run and its experiment, and whether system metrics are logged.
            run_dir: the run's folder, created if missing; what cannot be sent is kept there.
            params: settings by name; a value is logged as text of at most 6,000 characters. A value that
                differs from the one the run already has becomes a tag `resumed.NAME`.
            tags: MLflow tags of a new run, beside those that say where it comes from.
            run_id: the run to resume, whatever its status. Unless config.experiment is given, MLFLOW_RUN_ID
                takes precedence; it is removed from the environment, as by MLflow itself: it names one run.
            uri: of the store, by default `tracking_uri(run_dir)`.
            on_run: called once, in another thread, with the run's id, as soon as it is known.
        """
        uri = uri or tracking_uri(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        name = config.run_name or run_dir.resolve().name
        experiment, experiment_id = _experiment(config)
        if config.experiment is None:
            run_id = os.environ.pop("MLFLOW_RUN_ID", None) or run_id
        run = RunRecord(run_id, experiment, name, {**origin_tags(), **(tags or {})}, _now_ms(), experiment_id)
        link = Link(uri, UnsentFile(run_dir), run)
        system = partial(_system_metrics, link, uri, resumed=run_id is not None)
        tracking = cls(link, on_run, system if config.system_metrics else None)
        texts = {_valid_name(key): str(value)[:MAX_PARAM_LENGTH] for key, value in params.items()}
        tracking._events.put({"kind": "params", "params": texts})
        return tracking

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run, or None if the store was not reached so far; waits for the first try."""
        self._tried.wait()
        return self._link.run.id

    def log(self, records: Sequence[Mapping[str, float]]) -> None:
        """Log metrics; each record has a "step". Characters that MLflow refuses in names become "_"."""
        self._events.put(_metrics_event(records))

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
            self._tell_of_run()
            events, more = self._take()
            self._link.deliver(events)
        self._tell_of_run()

    def _tell_of_run(self) -> None:
        tell, run_id = self._on_run, self._link.run.id
        if tell is None or run_id is None:
            return
        self._on_run = None
        try:
            tell(run_id)
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
