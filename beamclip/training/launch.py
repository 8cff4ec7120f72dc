"""Starts Ray Train for a job, carries its records to a listener, and hands back the final state."""

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

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from beamclip.cluster import WorkersConfig
from beamclip.data.rows import read_rows_here
from beamclip.training.channel import Channel, Record, RemoteChannel
from beamclip.training.checkpoint import State, read_checkpoint
from beamclip.training.checkpoint_store import claim, find_checkpoint
from beamclip.training.process import CPU_WORKER_ENVIRONMENT
from beamclip.training.worker import NonRetryableError, TrainingJob, in_one_line, train_alone, train_worker

POLL_SECONDS = 0.2


class TrainingError(RuntimeError):
    """A run that could not be finished; the message is for the user."""


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    state: State
    """As checkpoint.read_checkpoint gives it."""
    interrupted: bool
    """Whether somebody asked it to stop."""


class FailFast(ray.train.UserCallback):
    """Ends a run whose workers need not be restarted.

    Ray Train restarts its workers whatever it was that they raised; only an error in a callback ends a run.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first worker's NonRetryableError, if there is one."""
        for _, error in sorted(worker_exceptions.items()):
            if isinstance(error, NonRetryableError):
                raise error


def fit(
    job: TrainingJob,
    workers: WorkersConfig,
    on_record: Callable[[Record], None],
    *,
    in_process: bool = False,
) -> Outcome:
    """Train, or go on training where the job's checkpoints end.

    Args:
        job: without a channel, which this function makes.
        on_record: called in this thread for every record of rank 0, in order.
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
        channel = _channel(workers)
        job = replace(job, channel=channel)
        if workers.without_ray:
            job = replace(job, read=read_rows_here)
        in_process = in_process or workers.without_ray
        alone = partial(train_alone, job, use_gpu=workers.use_gpu)
        body = alone if in_process else _trainer(job, workers, scratch).fit
        try:
            _run(body, channel, on_record, interrupted, in_process=in_process)
        except TrainingError:
            # A worker may be lost when its work is done.
            if not _is_complete(job):
                raise
    found = find_checkpoint(job.storage.checkpoints)
    if found.manifest is None:
        raise TrainingError(f"training ended without a checkpoint. {' '.join(found.damaged)}".rstrip())
    return Outcome(read_checkpoint(job.storage.checkpoints, found.manifest.step), interrupted.is_set())


def _channel(workers: WorkersConfig) -> Channel | RemoteChannel:
    if workers.without_ray:
        return Channel()
    # On this node: another one may be lost, and the run with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RemoteChannel(scheduling_strategy=here)


def _is_complete(job: TrainingJob) -> bool:
    last = find_checkpoint(job.storage.checkpoints).manifest
    return last is not None and last.step >= job.total_steps


def _trainer(job: TrainingJob, workers: WorkersConfig, scratch: str) -> ray.train.torch.TorchTrainer:
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": ray.put(job)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=workers.resources
        ),
        run_config=ray.train.RunConfig(
            # Ray reports nothing and keeps nothing there: the workers write their checkpoints themselves.
            name="train",
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
            callbacks=[FailFast()],  # type: ignore[list-item]
            logging_config=ray.train.LoggingConfig("ERROR"),  # type: ignore[call-arg]
            worker_runtime_env={"env_vars": {} if workers.use_gpu else CPU_WORKER_ENVIRONMENT},
        ),
    )


def _run(
    body: Callable[[], Any],
    channel: Channel | RemoteChannel,
    on_record: Callable[[Record], None],
    interrupted: threading.Event,
    *,
    in_process: bool,
) -> None:
    future = _in_background(body)
    try:
        _watch(future, channel, interrupted, on_record)
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
    on_record: Callable[[Record], None],
) -> None:
    asked = False
    while True:
        ended = future.done()
        if interrupted.is_set() and not asked:
            channel.request_stop()
            asked = True
        for record in channel.take():
            on_record(record)
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _check(future: "Future[Any]") -> None:
    try:
        future.result()
    except (ray.train.TrainingFailedError, NonRetryableError) as error:
        raise TrainingError(_cause(error)) from error


def _cause(error: BaseException) -> str:
    """What was wrong, in one line; Ray's own message is a page of nested tracebacks."""
    failures = sorted(getattr(error, "worker_failures", {}).items())
    # The peers of a lost worker fail as well, by errors of the connection to it.
    for rank, failure in failures:
        if isinstance(getattr(failure, "health_check_failure", failure), ray.exceptions.RayActorError):
            return (
                f"worker {rank}: its process or its node was lost, and --max-failures allows no more "
                "restarts. Most often memory ran out; lower --batch-size, or look into Ray's logs."
            )
    for rank, failure in failures:
        return f"worker {rank}: {in_one_line(failure)}"
    failure = getattr(error, "controller_failure", error)
    return str(failure).splitlines()[0] if isinstance(failure, NonRetryableError) else in_one_line(failure)


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
