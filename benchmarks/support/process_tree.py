"""Measure a command and all processes under it: wall time, CPU time and peak memory of the whole tree.

Memory is the sum of PSS, the proportional set size of Linux: a page that n processes share counts as 1/n in
each, so that libraries and shared arrays count once. It is read from /proc/PID/smaps_rollup, for which the
kernel walks all pages of a process: that takes tens of milliseconds for a tree of gigabytes, so it is done
as often as a share of a core allows, and at once when memory rises.

Orphans are measured too: while a command runs, this process adopts them. Linux only.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SCAN_SHARE = 0.005
"""Share of a core spent on listing the processes and their CPU times."""
MEMORY_SHARE = 0.005
"""Share of a core spent on measuring PSS regularly; up to as much again is spent when memory rises."""
SHORTEST_PAUSE = 0.1
"""Least seconds between two looks at the processes."""
RISE = 1.01
"""PSS is measured at once when private memory exceeds its value at the highest PSS by this factor."""
PATIENCE_SECONDS = 10.0
"""Time that processes have to end after the command has ended; then they are killed."""

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Key = tuple[int, int]
"""Process id, and start time in ticks since boot: ids are reused."""


@dataclass(frozen=True)
class _Row:
    """Fields of /proc/PID/stat."""

    key: Key
    parent: int
    zombie: bool
    own_seconds: float
    reaped_seconds: float


@dataclass(frozen=True)
class Process:
    """One process, and the CPU time that it had used when it was last seen."""

    key: Key
    parent: Key
    own_seconds: float
    """CPU seconds, user and system, of all its threads."""
    reaped_seconds: float
    """The same for its children that have ended and were waited for, with their own such children."""
    ended: bool = False


@dataclass(frozen=True)
class Sample:
    """The tree at one time."""

    seconds: float
    """Seconds since the start of the command."""
    cpu_seconds: float
    """CPU seconds used until then, ended processes included."""
    progress: int
    """Progress that the caller's function returned; 0 without one."""


@dataclass(frozen=True)
class TreeRun:
    """Time and memory of a command and all processes under it."""

    exit_code: int
    started_at: float
    """Seconds since the epoch, to compare with times of files."""
    wall_seconds: float
    """Seconds from the start to the end of the command itself."""
    cpu_seconds: float
    """User and system time of all processes. What a process used after it was last seen is missing if its
    parent did not wait for it."""
    peak_bytes: int
    """Highest sum of PSS that was measured."""
    processes: int
    """Number of processes that were seen at any time."""
    memory_samples: int
    """Number of times that PSS was measured."""
    sampling_share: float
    """CPU time of the sampling over wall time."""
    samples: tuple[Sample, ...]
    log: Path
    """File with standard output and error of all processes."""


def run_tree(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> TreeRun:
    """Run a command to its end and watch it, whatever its exit code is.

    Args:
        command: program and arguments.
        log: file for standard output and error.
        environment: all environment variables; by default those of this process.
        cwd: working directory; by default that of this process.
        progress: called at each look at the processes; returns how far the command is.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    watch = _Watch(progress)
    with log.open("wb") as output, _adopting_orphans():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
        )
        try:
            exit_code = _wait(process, watch)
            wall_seconds = watch.elapsed()
            watch.look(main=process.pid)
            _wait_for_others(watch, process.pid)
        finally:
            _kill(watch.members())
            process.wait()
    return TreeRun(
        exit_code=exit_code,
        started_at=watch.started_at,
        wall_seconds=wall_seconds,
        cpu_seconds=watch.samples[-1].cpu_seconds,
        peak_bytes=watch.peak_bytes,
        processes=len(watch.seen) - 1,
        memory_samples=watch.memory_samples,
        sampling_share=(watch.scan_seconds + watch.memory_seconds) / wall_seconds,
        samples=tuple(watch.samples),
        log=log,
    )


def total_cpu_seconds(seen: Mapping[Key, Process], root: Key) -> float:
    """Return the CPU seconds of a process and of all below it, ended ones included.

    `reaped_seconds` counts ended children exactly, but not those that nobody waited for. For these, the sum
    of what was last seen of the ended children is larger, and is taken.
    """
    children = defaultdict[Key, list[Key]](list)
    for key, process in seen.items():
        children[process.parent].append(key)

    def inclusive(key: Key) -> float:
        alive = sum(inclusive(child) for child in children[key] if not seen[child].ended)
        ended = sum(inclusive(child) for child in children[key] if seen[child].ended)
        return seen[key].own_seconds + max(seen[key].reaped_seconds, ended) + alive

    return inclusive(root)


class _Watch:
    """Watches all descendants of this process that were not there before."""

    def __init__(self, progress: Callable[[], int]) -> None:
        self.progress = progress
        self.started_at = time.time()
        self.began = time.monotonic()
        rows = _rows()
        self.foreign = {row.key for row in rows.values() if row.parent == os.getpid()}
        self.root = rows[os.getpid()].key
        self.reaped_before = rows[os.getpid()].reaped_seconds
        self.seen: dict[Key, Process] = {}
        self.samples: list[Sample] = []
        self.scan_seconds = self.memory_seconds = 0.0
        self.memory_samples = self.peak_bytes = 0
        self.private_at_peak = 0

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.began

    @property
    def pause(self) -> float:
        """Seconds until the next look, by the cost of the looks so far."""
        return max(SHORTEST_PAUSE, self.scan_seconds / max(1, len(self.samples)) / SCAN_SHARE)

    def members(self) -> list[int]:
        """Return the ids of all processes that were there at the last look."""
        return [key[0] for key, process in self.seen.items() if not process.ended and key != self.root]

    def look(self, *, main: int) -> None:
        """Record all processes and what they have used, and reap orphans that have ended."""
        began = time.thread_time()
        rows = _tree(_rows(), self.foreign)
        self._update(rows)
        total = total_cpu_seconds(self.seen, self.root)
        self.samples.append(Sample(self.elapsed(), total, self.progress()))
        for row in rows.values():
            if row.zombie and row.parent == os.getpid() and row.key[0] != main:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(row.key[0], os.WNOHANG)
        self.scan_seconds += time.thread_time() - began
        self._measure_memory([row.key[0] for row in rows.values() if row.key != self.root and not row.zombie])

    def _update(self, rows: dict[int, _Row]) -> None:
        own = rows[os.getpid()]
        reaped = own.reaped_seconds - self.reaped_before
        for row in rows.values():
            if row.key != self.root:
                parent = rows[row.parent].key
                self.seen[row.key] = Process(row.key, parent, row.own_seconds, row.reaped_seconds)
        self.seen[self.root] = Process(self.root, (0, 0), 0.0, reaped)
        there = {row.key for row in rows.values()}
        for key, process in self.seen.items():
            if key not in there and not process.ended:
                self.seen[key] = replace(process, ended=True)

    def _measure_memory(self, members: list[int]) -> None:
        spent, allowed = self.memory_seconds, MEMORY_SHARE * self.elapsed()
        began = time.thread_time()
        private = sum(map(_private_bytes, members))
        if spent <= allowed or (spent <= 2 * allowed and private > RISE * self.private_at_peak):
            found = sum(map(_pss_bytes, members))
            self.memory_samples += 1
            if found > self.peak_bytes:
                self.peak_bytes, self.private_at_peak = found, private
        self.memory_seconds += time.thread_time() - began


def _wait(process: subprocess.Popen[bytes], watch: _Watch) -> int:
    while True:
        watch.look(main=process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=watch.pause)


def _wait_for_others(watch: _Watch, main: int) -> None:
    """Wait for daemons, which may need a moment to notice that the command has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while watch.members() and time.monotonic() < deadline:
        time.sleep(watch.pause)
        watch.look(main=main)


def _kill(members: list[int]) -> None:
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Inside the block, descendants whose parent ends become children of this process, not of init."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _rows() -> dict[int, _Row]:
    """Return all processes of the machine, by id."""
    found = (_row(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {row.key[0]: row for row in found if row is not None}


def _row(pid: int) -> _Row | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in brackets, may hold anything; see proc_pid_stat(5) for the fields after it.
    fields = text[text.rindex(")") + 2 :].split()
    user, system, reaped_user, reaped_system = (int(field) / _TICKS for field in fields[11:15])
    key = (pid, int(fields[19]))
    return _Row(key, int(fields[1]), fields[0] == "Z", user + system, reaped_user + reaped_system)


def _tree(rows: dict[int, _Row], foreign: set[Key]) -> dict[int, _Row]:
    """Return this process and all below it, without the children that it had before."""
    children = defaultdict[int, list[_Row]](list)
    for row in rows.values():
        if row.key not in foreign:
            children[row.parent].append(row)
    found, front = {}, [rows[os.getpid()]]
    while front:
        row = front.pop()
        found[row.key[0]] = row
        front += children[row.key[0]]
    return found


def _private_bytes(pid: int) -> int:
    """Return the resident bytes that are neither of a file nor of shared memory."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
