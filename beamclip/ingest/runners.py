"""Where shards are downloaded: in processes of this machine, or in tasks of a Ray cluster.

Both kinds of runner take tasks and report each as finished or failed; `run_shards` keeps as many busy as
asked for and tries a failed shard once more. A process that is killed, for lack of memory for example, is a
failed shard and not a hang.

A shard takes as long as its slowest server. A local shard that has started all its downloads, and only waits
for the last of them, gives its slot to the next shard, so that a few silent servers in each cost no time.
"""

import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from beamclip.child import start_module
from beamclip.cluster.nodes import SharedPlaces, ask_nodes
from beamclip.cluster.session import ray_session
from beamclip.ingest.shard import DownloadSettings, ShardTask, download_shard
from beamclip.places import is_address

_ENVIRONMENT = {
    "NO_ALBUMENTATIONS_UPDATE": "1",  # else each start asks the network for the latest version
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(2**28),
    "OPENBLAS_NUM_THREADS": "1",  # a process with threads does not fork safely
    "OMP_NUM_THREADS": "1",
}


_SHARDS_A_SLOT = 6
"""Most shards under way for each slot, those that only wait included: each is a process with its memory."""

_SHARD_ID = struct.Struct("q")


class ShardState(Enum):
    """State of a shard that was started."""

    WAITING = "waiting"  # all its rows are under way
    COMPLETE = "complete"
    FAILED = "failed"


class ShardRunner(Protocol):
    """Downloads shards side by side."""

    slots: int
    """Shards to keep busy at a time."""

    def submit(self, task: ShardTask) -> None:
        """Start one shard; the caller has at most `slots` started that are not WAITING."""

    def next_event(self) -> tuple[int, ShardState]:
        """Wait until any started shard changes its state; return its number and new state.

        A runner need not report WAITING.
        """


def run_shards(runner: ShardRunner, tasks: Iterable[ShardTask]) -> Iterator[tuple[int, bool]]:
    """Download shards, a failed one twice; yield the number of each and whether it is complete.

    `tasks` is read lazily, one task each time a slot is free.
    """
    source = iter(tasks)
    again: deque[ShardTask] = deque()
    started: dict[int, ShardTask] = {}
    busy: set[int] = set()
    retried: set[int] = set()
    while True:
        while len(busy) < runner.slots and len(started) < runner.slots * _SHARDS_A_SLOT:
            task = again.popleft() if again else next(source, None)
            if task is None:
                break
            started[task.shard_id] = task
            busy.add(task.shard_id)
            runner.submit(task)
        if not started:
            return
        shard_id, state = runner.next_event()
        busy.discard(shard_id)
        if state is ShardState.WAITING:
            continue
        task = started.pop(shard_id)
        complete = state is ShardState.COMPLETE
        if not complete and shard_id not in retried:
            retried.add(shard_id)
            again.append(task)
        else:
            yield shard_id, complete


@contextmanager
def local_runner(settings: DownloadSettings, slots: int, log: Path) -> Iterator["LocalRunner"]:
    """Yield a runner that downloads in processes of this machine, `slots` at a time.

    What they print goes to the file `log`. All of them are killed on leaving, for whatever reason.
    """
    ours, theirs = Pipe()
    with log.open("ab") as output:
        process = start_module(
            __name__, str(theirs.fileno()), environment=_ENVIRONMENT,
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    theirs.close()
    try:
        with tempfile.NamedTemporaryFile(prefix="beamclip-turns-") as turns:
            yield LocalRunner(replace(settings, turns=turns.name), slots, ours, log)
    finally:
        _end_group(process)
        ours.close()


class LocalRunner:
    """Runs one child process that has img2dataset imported and forks a process for each shard.

    A process per shard instead of a pool: the import is paid once, leaked memory is given back, and a killed
    process is noticed.
    """

    def __init__(self, settings: DownloadSettings, slots: int, connection: Connection, log: Path) -> None:
        self.slots = slots
        self._connection = connection
        self._log = log
        connection.send(settings)

    def submit(self, task: ShardTask) -> None:
        """Start one shard."""
        self._connection.send(task)

    def next_event(self) -> tuple[int, ShardState]:
        """Wait until any started shard changes its state; return its number and new state.

        Raises:
            RuntimeError: the child process has ended.
        """
        try:
            shard_id, state = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the download process ended unexpectedly; see {self._log}") from None
        return shard_id, ShardState(state)


@contextmanager
def ray_runner(settings: DownloadSettings, slots: int | None) -> Iterator["RayRunner"]:
    """Yield a runner for the Ray cluster that `beamclip.cluster.session.ray_session` joins or starts.

    Args:
        settings: their folder must be an address, or the same path on all nodes. In a folder, the nodes count
            requests to a host together, by file locks; with an address, each node counts its own.
        slots: shards at a time; None: one for each CPU of the cluster.
    """
    with ray_session(), _shared_turns(settings.folder) as turns:
        import ray

        ask_nodes(SharedPlaces(written=(("--out", settings.folder),)))
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        runner = RayRunner(replace(settings, turns=turns), slots or cpus)
        try:
            yield runner
        finally:
            runner.cancel()


@contextmanager
def _shared_turns(folder: str) -> Iterator[str]:
    """Yield the path of the file for `host_turns`: one file for all nodes, or with an address one on each."""
    if is_address(folder):
        yield str(Path(tempfile.gettempdir(), f"beamclip-turns-{uuid4().hex}"))
        return
    with tempfile.NamedTemporaryFile(prefix="turns-", dir=Path(folder) / ".ingest") as turns:
        yield turns.name


class RayRunner:
    """Runs a Ray task of one CPU for each shard.

    img2dataset's own Ray distributor drops the status of its tasks, so that a lost shard goes unnoticed.
    """

    def __init__(self, settings: DownloadSettings, slots: int) -> None:
        import ray

        self.slots = slots
        # Environment variables reach the task through runtime_env before img2dataset is imported.
        remote = ray.remote(num_cpus=1, max_retries=0)(download_shard)
        self._download = remote.options(runtime_env={"env_vars": _ENVIRONMENT})
        self._settings = ray.put(settings)
        self._running: dict[Any, int] = {}

    def submit(self, task: ShardTask) -> None:
        """Start one shard."""
        self._running[self._download.remote(self._settings, task)] = task.shard_id

    def next_event(self) -> tuple[int, ShardState]:
        """Wait until any started shard ends; return its number, and COMPLETE or FAILED."""
        import ray

        (done,), _ = ray.wait(list(self._running), num_returns=1)
        shard_id = self._running.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayError:
            return shard_id, ShardState.FAILED
        return shard_id, ShardState.COMPLETE

    def cancel(self) -> None:
        """Cancel the tasks that still run."""
        import ray

        for task in self._running:
            ray.cancel(task, force=True)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _serve_tasks(connection: Connection) -> None:
    """Fork a process for each task that arrives, until the other side closes the connection or dies."""
    settings = connection.recv()
    running: dict[int, tuple[int, BaseProcess]] = {}
    waiting, has_waiting = os.pipe()
    fork = get_context("fork")
    while True:
        for ready in wait([connection, waiting, *running]):
            if ready == waiting:
                (shard_id,) = _SHARD_ID.unpack(os.read(waiting, _SHARD_ID.size))
                connection.send((shard_id, ShardState.WAITING.value))
                continue
            if isinstance(ready, int):
                shard_id, process = running.pop(ready)
                process.join()
                state = ShardState.COMPLETE if process.exitcode == 0 else ShardState.FAILED
                connection.send((shard_id, state.value))
                continue
            try:
                task = connection.recv()
            except EOFError:
                os.killpg(0, signal.SIGKILL)
            process = fork.Process(target=_run_task, args=(connection, has_waiting, settings, task))
            process.start()
            running[process.sentinel] = task.shard_id, process


def _run_task(connection: Connection, has_waiting: int, settings: DownloadSettings, task: ShardTask) -> None:
    connection.close()
    # A write this short to a pipe is atomic, whatever other processes write.
    download_shard(settings, task, on_last_rows=lambda: os.write(has_waiting, _SHARD_ID.pack(task.shard_id)))


def _main(descriptor: int) -> None:
    # img2dataset imports torch (through webdataset) and ray only to offer what is not used here. Without
    # them this process starts in 2 s instead of 5 and needs a third of the memory.
    sys.modules["torch"] = sys.modules["ray"] = None  # type: ignore[assignment]
    import img2dataset  # noqa: F401 - imported before the forks, for all of them

    _serve_tasks(Connection(descriptor))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
