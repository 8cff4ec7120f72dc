"""Start the workers of a job, pass their events to a listener, and return the final state."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

from beamclip.background import in_background
from beamclip.cluster.config import WorkersConfig
from beamclip.data.bundles import read_rows_here
from beamclip.data.starts import read_starts
from beamclip.training.channel import Channel, RemoteChannel
from beamclip.training.checkpoint import State, read_checkpoint, read_newest_checkpoint
from beamclip.training.checkpoint_store import claim
from beamclip.training.events import Event, Saved, Stopped
from beamclip.training.waiting import WaitingWorkers
from beamclip.training.worker import (
    NonRetryableError,
    TrainingError,
    TrainingJob,
    train_in_process,
)

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class TrainingEnd:
    """How a training run ended."""

    state: State
    """State of the last whole checkpoint, as returned by checkpoint.read_checkpoint."""
    interrupted: bool
    """Whether Ctrl-C or SIGTERM asked it to stop."""


def fit(
    job: TrainingJob,
    workers: WorkersConfig,
    on_event: Callable[[Event], None],
    waiting: WaitingWorkers | None,
) -> TrainingEnd:
    """Train, or resume training from the newest of the job's checkpoints.

    Args:
        job: its channel, its claim and the starts of its samples are set here.
        on_event: called in this thread for every event, in order.
        waiting: the workers that train. None: train in a thread of this process, which must hold the
            resources already; whoever started the process must handle its loss.

    Raises:
        InputError: the address of the checkpoints cannot be written to.
        TrainingError: the workers were lost more often than allowed, met an error that a restart would
            repeat, or left no whole checkpoint.
        KeyboardInterrupt: a second Ctrl-C or SIGTERM arrived.
    """
    storage = replace(job.storage, claim=claim(job.storage.checkpoints))
    job = replace(job, storage=storage, starts=read_starts(job.shards))
    with interrupts() as interrupted:
        if waiting is None:
            here = Channel()
            job = replace(job, channel=here, read=read_rows_here if workers.without_ray else job.read)
            # Not in the main thread, which receives Ctrl-C.
            ended = in_background("beamclip-fit", partial(_train_here, job, use_gpu=workers.use_gpu))
            channel: Channel | RemoteChannel = here
        else:
            waiting.give(job)
            ended, channel = waiting.ended, waiting.channel
        try:
            last = _watch(ended, channel, interrupted, on_event, job.total_steps)
        except BaseException:
            # Nobody waits for the workers from here on; in a Ray that stays up, they must end by themselves.
            channel.request_stop()
            if waiting is None:
                # The training thread would compete with what this process does next.
                wait([ended])
            raise
        # Ray Train's own clean-up takes one second, or twelve, and its failure would not matter any more.
        if waiting is None or last is None:
            ended.result()
    if last is not None:
        return TrainingEnd(read_checkpoint(job.storage.checkpoints, last), interrupted.is_set())
    state, damaged = read_newest_checkpoint(job.storage.checkpoints)
    if state is None:
        raise TrainingError(f"training ended without a checkpoint. {' '.join(damaged)}".rstrip())
    return TrainingEnd(state, interrupted.is_set())


def _train_here(job: TrainingJob, *, use_gpu: bool) -> None:
    try:
        train_in_process(job, use_gpu=use_gpu)
    except NonRetryableError as error:
        raise TrainingError(str(error).splitlines()[0]) from error


def _watch(
    future: "Future[None]",
    channel: Channel | RemoteChannel,
    interrupted: threading.Event,
    on_event: Callable[[Event], None],
    total_steps: int,
) -> int | None:
    """Pass events on until the workers have written their last checkpoint; return its step.

    None if they have ended without saying that they have.
    """
    asked = False
    while True:
        ended = future.done()
        if interrupted.is_set() and not asked:
            channel.request_stop()
            asked = True
        for event in channel.take():
            on_event(event)
            if isinstance(event, Stopped) or (isinstance(event, Saved) and event.step == total_steps):
                return event.step
        if ended:
            return None
        time.sleep(POLL_SECONDS)


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second one raises KeyboardInterrupt.

    Outside the main thread, signals are not handled and the event is never set.
    """
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
