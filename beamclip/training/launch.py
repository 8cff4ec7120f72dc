"""Starts Ray Train for a plan, carries its records to a listener, and hands back the final state."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.train
import ray.train.torch

from beamclip.cluster import WorkersConfig
from beamclip.training.channel import Channel, Record
from beamclip.training.checkpoint import State, read_state
from beamclip.training.worker import FAILURE, Plan, train_worker

CHECKPOINTS = "checkpoints"
POLL_SECONDS = 0.2


class TrainingError(RuntimeError):
    """A run that could not be finished; the message is for the user."""


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    state: State
    """As checkpoint.read_state gives it."""
    interrupted: bool
    """Whether somebody asked it to stop."""


def fit(plan: Plan, workers: WorkersConfig, run_dir: Path, on_record: Callable[[Record], None]) -> Outcome:
    """Train, or go on training where the checkpoints below `run_dir` end.

    Args:
        plan: without a channel; this function makes it.
        on_record: called in this thread for every record of rank 0, in order.

    Raises:
        TrainingError: the workers failed more often than allowed, or the loss was not finite.
    """
    channel = Channel.remote()  # type: ignore[attr-defined]
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"plan": ray.put(replace(plan, channel=channel))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=str(run_dir.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="loss", checkpoint_score_order="min"
            ),
            logging_config=ray.train.LoggingConfig("ERROR"),  # type: ignore[call-arg]
        ),
    )
    failures: list[str] = []

    def deliver() -> None:
        for record in ray.get(channel.take.remote()):
            if FAILURE in record:
                failures.append(record[FAILURE])
            else:
                on_record(record)

    with ThreadPoolExecutor(1) as pool, interrupts() as interrupted:
        # Ray's own answer to Ctrl-C aborts without a checkpoint; outside the main thread it stays out of the way.
        future = pool.submit(trainer.fit)
        _watch(future, channel, interrupted, deliver)
        deliver()
        result = _result(future)
    if failures:
        raise TrainingError(failures[0])
    if result.checkpoint is None:
        raise TrainingError("training ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        return Outcome(read_state(Path(folder)), interrupted.is_set())


def _watch(
    future: "Future[Any]", channel: Any, interrupted: threading.Event, deliver: Callable[[], None]
) -> None:
    asked = False
    while not future.done():
        if interrupted.is_set() and not asked:
            ray.get(channel.request_stop.remote())
            asked = True
        deliver()
        time.sleep(POLL_SECONDS)


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(_cause(error)) from error


def _cause(error: BaseException) -> str:
    """The first worker's own error, in one line; Ray's message is a page of nested tracebacks."""
    worker_failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(worker_failures.items()):
        lines = [line for line in str(failure).strip().splitlines() if line.strip()]
        if lines:
            return f"worker {rank}: {lines[-1].strip()}"
    return str(error).strip().splitlines()[0]


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C sets the event; a second one raises KeyboardInterrupt."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run left a checkpoint to go on from."""
    return any((run_dir / CHECKPOINTS).glob("step=*"))
