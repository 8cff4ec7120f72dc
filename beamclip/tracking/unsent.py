"""The file of events that could not be sent, and how they are sent later."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

from filelock import FileLock

from beamclip.errors import InputError
from beamclip.json_lines import mend_json_lines
from beamclip.summary import SUMMARY_FILE, read_summary, write_summary
from beamclip.tracking.place import note_run, tracking_uri
from beamclip.tracking.store import MAX_METRICS, Event, Refused, RunRecord, Store, parts

UNSENT_FILE = "mlflow_unsent.jsonl"

Warn = Callable[[str], None]


def batched(events: Iterable[Event]) -> deque[Event]:
    """Join neighbouring metrics into requests as large as MLflow accepts, and put files last.

    Files have a storage of their own, whose failure must not hold back the rest.
    """
    joined: deque[Event] = deque()
    in_order = sorted(events, key=lambda event: event["kind"] in ("artifact", "model_files"))
    # Metrics of other models or data sets are other requests.
    for about, group in groupby(in_order, key=lambda event: {**event, "metrics": None}):
        if about["kind"] == "metrics":
            rows = [row for event in group for row in event["metrics"]]
            joined.extend({**about, "metrics": part} for part in parts(rows, MAX_METRICS))
        else:
            joined.extend(group)
    return joined


def send_events(
    store: Store, run_id: str, pending: deque[Event], warn: Warn, *, until: float = math.inf
) -> None:
    """Send `pending` from the left and remove what arrived; after an exception it holds the rest.

    Args:
        warn: called with what the store refused, which is dropped.
        until: time on the monotonic clock, seconds, after which no further event is sent.
    """
    while pending and time.monotonic() < until:
        try:
            store.send(run_id, pending[0])
        except Refused as reason:
            warn(f"dropped, as it was refused: {reason}")
        pending.popleft()


class UnsentFile:
    """A file of JSON lines: the run, then one event a line. It exists only while it holds events."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / UNSENT_FILE
        # A person may call `replay` while the run is still writing.
        self._lock = FileLock(run_dir / f".{UNSENT_FILE}.lock")

    def append(self, run: RunRecord, events: Iterable[Event]) -> None:
        """Add events to the file; a new file begins with the run."""
        with self._lock:
            # A full disk leaves half a line, which would swallow the next one.
            mend_json_lines(self.path)
            self._append(run, events)

    def _append(self, run: RunRecord, events: Iterable[Event]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(events) if file.tell() else _lines([asdict(run), *events]))

    def send(self, store: Store, warn: Warn, *, until: float = math.inf) -> RunRecord:
        """Send the content and return the run, now with an id; the file keeps what did not arrive.

        Args:
            warn, until: as in `send_events`.

        Raises:
            InputError: the file does not begin with a run.
            Exception: as `Store.open_run` and `Store.send`.
        """
        with self._lock:
            run, events = self._read()
            run_id = store.open_run(run)
            run = replace(run, id=run_id)
            # The id is on disk before anything is sent: another try must not make another run.
            self._write(run, events)
            pending = batched(events)
            try:
                send_events(store, run_id, pending, warn, until=until)
            finally:
                self._write(run, pending)
        return run

    def _read(self) -> tuple[RunRecord, list[Event]]:
        first, *rest = self.path.read_text(encoding="utf-8").splitlines() or [""]
        try:
            run = RunRecord(**json.loads(first))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.path}: line 1 does not describe a run ({error}). Remove the file."
            ) from error
        events: list[Event] = []
        for line in rest:
            # A machine that died while writing leaves half a line.
            with suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return run, events

    def _write(self, run: RunRecord, events: Sequence[Event]) -> None:
        if events:
            draft = self.path.with_suffix(".draft")
            draft.write_text(_lines([asdict(run), *events]), encoding="utf-8")
            draft.replace(self.path)
        else:
            self.path.unlink(missing_ok=True)


def replay(run_dir: Path, warn: Warn) -> str:
    """Send what the run in `run_dir` could not send, and return the MLflow run's id.

    The id is also noted in the run's folder and in its summary. May be repeated after any failure.

    Args:
        warn: called with what the store refused for good.

    Raises:
        InputError: nothing waits to be sent, the file is damaged, or the run is not in this store.
        Exception: whatever MLflow raises while the store is down.
    """
    unsent = UnsentFile(run_dir)
    if not unsent.path.exists():
        raise InputError(f"{unsent.path}: no such file. Nothing waits to be sent for this run.")
    uri = tracking_uri(run_dir)
    try:
        run = unsent.send(Store(uri), warn)
    except Refused as reason:
        raise InputError(f"{reason}. Set MLFLOW_TRACKING_URI to the store the run began in.") from reason
    assert run.id is not None
    note_run(run_dir, run.id, uri)
    if (run_dir / SUMMARY_FILE).exists():
        write_summary(run_dir, replace(read_summary(run_dir), mlflow_run_id=run.id))
    return run.id


def _lines(items: Iterable[object]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)
