"""The parts of a command that grow with the shards and the workers, run for real on counts without data."""

import pickle
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import fsspec
from support.counted_folder import counted_folder

from beamclip.data.bundles import bundles_of
from beamclip.data.index import Starts
from beamclip.data.known_shards import KNOWN_FILE
from beamclip.data.listing import fingerprint, list_shards
from beamclip.data.lost_samples import FirstLost
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.order import LANES_PER_WORKER, PIECE
from beamclip.data.position import added
from beamclip.data.shards import Shard
from beamclip.data.starts import read_starts
from beamclip.data.worker_stream import WorkerShare
from beamclip.runs.recorder import Recorder, read_history, rewind_history
from beamclip.tracking import Tracking
from beamclip.tracking.config import TrackingConfig
from beamclip.tracking.unsent import UNSENT_FILE
from beamclip.training.channel import Channel
from beamclip.training.events import Lost

T = TypeVar("T")

BATCH_PER_WORKER = 256
METRICS = (
    *("loss", "loss/csm", "teacher_cosine", "grad_norm", "lr", "images_per_second", "data_wait_share"),
    *("window_seconds", "gpu_memory_gib", "workers"),
)
"""Of a record of a distillation on GPUs, besides its step."""
REASONS = ("corrupt image", "missing image", "broken shard")
STEPS, WINDOWS = 100, 20
"""Steps that are shared out, and windows that are drawn."""


@dataclass(frozen=True)
class Scale:
    """For how much the parts are run."""

    shards: int
    rows: int
    """Samples of a shard."""
    workers: int
    records: int
    """Records of a training."""


@dataclass(frozen=True)
class Part:
    """What one part took."""

    name: str
    seconds: float
    cpu_seconds: float
    """CPU time of this process, in all of its threads."""
    peak_mb: float
    """Most memory that the whole process had while it ran, inputs included, MB."""
    note: str
    """What came of it, in a few words."""
    value: float | None
    """The same as a number that plans use, if there is one."""


class Parts:
    """Runs parts one after the other, and keeps what they took."""

    def __init__(self, on_part: Callable[[Part], None]) -> None:
        self.taken: dict[str, Part] = {}
        self._on_part = on_part

    def run(
        self,
        key: str,
        name: str,
        body: Callable[[], T],
        note: Callable[[T], str] = lambda _: "",
        value: Callable[[T], float | None] = lambda _: None,
    ) -> T:
        """Run a part, and return its result.

        Args:
            key: by which its figures are found.
            note, value: see Part.
        """
        _reset_peak()
        began, cpu = time.perf_counter(), time.process_time()
        result = body()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        part = Part(name, seconds, cpu, _peak_mb(), note(result), value(result))
        self.taken[key] = part
        self._on_part(part)
        return result


def measure_driver(scale: Scale, on_part: Callable[[Part], None]) -> dict[str, Part]:
    """Run all parts, and return them by their keys; `on_part` hears of each as it ends."""
    parts = Parts(on_part)
    with tempfile.TemporaryDirectory() as scratch:
        shards, starts = measure_index(parts, scale, Path(scratch))
        measure_plan(parts, scale, shards, starts)
        measure_records(parts, scale, Path(scratch))
    return parts.taken


def measure_index(parts: Parts, scale: Scale, scratch: Path) -> tuple[list[Shard], Starts]:
    """Open a folder of shards for the first time and again, and hand the shards to a worker."""
    folder = counted_folder(scale.shards, scale.rows)
    parts.run(
        "first opening",
        "open the shards for the first time",
        lambda: list_shards(folder),
        lambda _: f"{KNOWN_FILE} has {_mb(_size(f'{folder}/{KNOWN_FILE}'))}",
    )
    shards = parts.run("opening", "open them again", lambda: list_shards(folder))
    starts = parts.run(
        "starts",
        "know where their samples begin",
        lambda: read_starts(shards),
        lambda found: f"{_mb(found.places.nbytes + found.ends.nbytes)}, once a node",
    )
    parts.run("fingerprint", "name the data set", lambda: fingerprint(shards))
    packed = parts.run(
        "packing", "pack the list of shards", lambda: pickle.dumps(shards, 5), lambda packed: _mb(len(packed))
    )
    file = scratch / "shards.pickle"
    file.write_bytes(packed)
    # In a process of its own: it has in memory what a worker has, and nothing else.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        parts.run(
            "unpacking",
            "start a process, and unpack the list there",
            lambda: pool.submit(_unpacked_bytes, file).result(),
            lambda size: f"{_mb(size)}, in each worker",
            lambda size: size / scale.shards,
        )
    return shards, starts


def _unpacked_bytes(file: Path) -> int:
    """Bytes by which this process grows as it unpacks a list of shards."""
    packed = file.read_bytes()
    before = _status_bytes("VmRSS")
    shards = pickle.loads(packed)
    return _status_bytes("VmRSS") - before if shards else 0


def measure_plan(parts: Parts, scale: Scale, shards: list[Shard], starts: Starts) -> None:
    """Plan an epoch, as each worker does, and what one worker reads and serves of it."""
    counts = source_counts(shards)
    window = PIECE * LANES_PER_WORKER * scale.workers
    mixture = parts.run(
        "order",
        "make the order of the run",
        lambda: mixture_of(counts, (), window, 0, scale.workers),
        lambda made: f"{made.rows:,} samples, {made.lanes:,} lanes",
    )
    parts.run(
        "epoch",
        "plan an epoch",
        lambda: mixture.orders[0].epoch(0),
        lambda epoch: f"{len(epoch.starts) - 1:,} windows, in each worker",
    )
    share = WorkerShare(mixture, BATCH_PER_WORKER * scale.workers, 0, scale.workers)
    windows = share.windows_from(0)
    drawn = parts.run(
        "windows",
        f"draw {WINDOWS} windows, of which a worker has its part",
        lambda: list(islice(windows, WINDOWS)),
        lambda found: f"{len(found[0].row):,} of about {window:,} samples each, in each worker",
    )
    parts.run(
        "reads",
        "divide its part into reads",
        lambda: [bundle for each in drawn for bundle in bundles_of(each, shards, starts)],
        lambda made: (
            f"{sum(bundle.rows for bundle in made):,} samples by "
            f"{sum(len(bundle.segments) for bundle in made):,} requests"
        ),
    )
    parts.run(
        "shares",
        f"share out {STEPS} steps",
        lambda: [share.of_step(step) for step in range(STEPS)],
        lambda _: f"batches of {share.batch_size:,}, in each worker",
    )
    # A process that has not planned any epoch yet.
    resumed = mixture_of(counts, (), window, 0, scale.workers)
    parts.run(
        "resuming",
        "find the place of a resumed run",
        lambda: next(resumed.windows_from(mixture.rows // 2, 0, scale.workers)),
        lambda _: "in the middle of an epoch, in each worker",
    )


def measure_records(parts: Parts, scale: Scale, scratch: Path) -> None:
    """Receive what workers tell, and keep the records of a training in its folder and in MLflow."""
    channel, run, database = Channel(), scratch / "run", scratch / "mlflow.db"
    parts.run(
        "lost samples",
        "hear of lost samples from every worker",
        lambda: _lost_lines(channel, scale.workers),
        lambda lines: f"{scale.workers * len(REASONS):,} reports, {lines} lines shown",
    )
    skipped = [dict.fromkeys(REASONS, rank) for rank in range(scale.workers)]
    parts.run("skipped", "add up what they skipped", lambda: added(skipped), lambda _: "at each checkpoint")
    parts.run("tables", "make MLflow's tables", lambda: _track(scratch / "first", database, 0))
    empty = database.stat().st_size
    parts.run(
        "records",
        f"keep {scale.records:,} records in folder and MLflow",
        lambda: _track(run, database, scale.records),
        lambda _: f"{len(METRICS)} metrics each, in SQLite",
        lambda _: (database.stat().st_size - empty) / (scale.records * len(METRICS)),
    )
    parts.run("history", "read them again", lambda: read_history(run))
    parts.run("rewinding", "go back to the middle", lambda: rewind_history(run, 10 * (scale.records // 2)))


def _lost_lines(channel: Channel, workers: int) -> int:
    for rank in range(workers):
        for reason in REASONS:
            channel.put(Lost(((reason, f"shard {rank:08d}.tar, sample {rank}: {reason}"),)))
    first = FirstLost()
    return sum(len(first.new(event.samples)) for event in channel.take() if isinstance(event, Lost))


def _track(folder: Path, database: Path, records: int) -> None:
    """Keep so many records as the command of a training does, and wait until all are sent."""
    config = TrackingConfig(system_metrics=False)
    with Tracking.start(config, run_dir=folder, params={}, uri=f"sqlite:///{database}") as tracking:
        recorder = Recorder(folder, tracking)
        for number in range(1, records + 1):
            recorder.keep({"step": 10 * number, **{name: number / 7 for name in METRICS}})
    if (folder / UNSENT_FILE).exists():
        raise RuntimeError(f"{records:,} records are more than MLflow took before the run was closed")


def planning_ns(scale: Scale, parts: Mapping[str, Part]) -> float:
    """CPU time in which each worker plans for a sample of the run, whoever serves it, ns.

    It draws each window twice: once to read it, and once to take its samples (data.worker_stream).
    """
    drawn = WINDOWS * PIECE * LANES_PER_WORKER * scale.workers
    shared = STEPS * BATCH_PER_WORKER * scale.workers
    return 1e9 * (2 * parts["windows"].cpu_seconds / drawn + parts["shares"].cpu_seconds / shared)


def count_system_metrics() -> int:
    """Return how many metrics MLflow's monitor of the driver's machine logs at a time."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor("", tracking_uri="sqlite://")
    monitor.collect_metrics()
    return len(monitor.aggregate_metrics())


def _size(address: str) -> int:
    fs, path = fsspec.core.url_to_fs(address)
    return len(fs.cat_file(path))


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    return _status_bytes("VmHWM") / 1e6


def _status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"/proc/self/status has no {name}"
    return int(found[1]) * 1024
