"""Starts the workers of a job, carries their events to a listener, and hands back the final state."""

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any

from beamclip.cluster import WorkersConfig
from beamclip.data.rows import read_rows_here
from beamclip.training.channel import Channel, RemoteChannel
from beamclip.training.checkpoint import State, read_checkpoint
from beamclip.training.checkpoint_store import claim, find_checkpoint
from beamclip.training.events import Event
from beamclip.training.worker import (
    NonRetryableError,
    TrainingError,
    TrainingJob,
    train_in_process,
)

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    state: State
    """As checkpoint.read_checkpoint gives it."""
    interrupted: bool
    """Whether somebody asked it to stop."""


def fit(
    job: TrainingJob,
    workers: WorkersConfig,
    on_event: Callable[[Event], None],
    *,
    in_process: bool = False,
) -> Outcome:
    """Train, or go on training where the job's checkpoints end.

    Args:
        job: without a channel, which this function makes.
        on_event: called in this thread for every event, in order.
        in_process: the one worker is a thread of this process, which has its resources already; a loss of
            the process is for whoever started it.

    Raises:
        InputError: the address of the checkpoints cannot be written to.
        TrainingError: the workers were lost more often than allowed, or met an error that would come again.
    """
    storage = replace(job.storage, claim=claim(job.storage.checkpoints))
    job = replace(job, storage=storage)
    scratch_folder = tempfile.TemporaryDirectory(prefix="beamclip-ray-", ignore_cleanup_errors=True)
    with interrupts() as interrupted, scratch_folder as scratch:
        in_process = in_process or workers.without_ray
        if workers.without_ray:
            job = replace(job, read=read_rows_here)
        if in_process:
            channel: Channel | RemoteChannel = Channel()
            job = replace(job, channel=channel)
            body = partial(train_in_process, job, use_gpu=workers.use_gpu)
        else:
            # Ray takes seconds to import.
            from beamclip.training.ray_train import open_channel, run_workers

            channel = open_channel()
            job = replace(job, channel=channel)
            body = partial(run_workers, job, workers, scratch)
        try:
            _run(body, channel, on_event, interrupted, in_process=in_process)
        except TrainingError:
            # A worker may be lost when its work is done.
            if not _is_complete(job):
                raise
    found = find_checkpoint(job.storage.checkpoints)
    if found.manifest is None:
        raise TrainingError(f"training ended without a checkpoint. {' '.join(found.damaged)}".rstrip())
    return Outcome(read_checkpoint(job.storage.checkpoints, found.manifest.step), interrupted.is_set())


def _is_complete(job: TrainingJob) -> bool:
    last = find_checkpoint(job.storage.checkpoints).manifest
    return last is not None and last.step >= job.total_steps


def _run(
    body: Callable[[], Any],
    channel: Channel | RemoteChannel,
    on_event: Callable[[Event], None],
    interrupted: threading.Event,
    *,
    in_process: bool,
) -> None:
    future = _in_background(body)
    try:
        _watch(future, channel, interrupted, on_event)
    except BaseException:
        # Who left cannot wait for the workers; where this Ray stays up, they end by themselves.
        channel.request_stop()
        if in_process:
            # It would compete with what this process does next.
            wait([future])
        raise
    _check(future)


def _in_background(body: Callable[[], Any]) -> "Future[Any]":
    """Run in a thread: Ray's own answer to Ctrl-C, which aborts without a checkpoint, needs the main one.

    A daemon, since an executor's thread would hold up a process that is on its way out until training ends.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(body())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="beamclip-fit", daemon=True).start()
    return future


def _watch(
    future: "Future[Any]",
    channel: Channel | RemoteChannel,
    interrupted: threading.Event,
    on_event: Callable[[Event], None],
) -> None:
    asked = False
    while True:
        ended = future.done()
        if interrupted.is_set() and not asked:
            channel.request_stop()
            asked = True
        for event in channel.take():
            on_event(event)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _check(future: "Future[Any]") -> None:
    try:
        future.result()
    except NonRetryableError as error:
        raise TrainingError(str(error).splitlines()[0]) from error


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C or SIGTERM sets the event; a second one raises KeyboardInterrupt."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
