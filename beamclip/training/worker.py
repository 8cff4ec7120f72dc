"""What each worker of a training runs: build the method, stream the rank's data, run the loop."""

import contextlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from beamclip.data.batch import Batch
from beamclip.data.bundles import RowReader
from beamclip.data.config import Augmentation, CaptionConfig, DecodePlace, StreamConfig
from beamclip.data.decoding import Decoding
from beamclip.data.index import NO_STARTS, Starts
from beamclip.data.listing import fingerprint
from beamclip.data.mixture import Mixture, mixture_of, source_counts
from beamclip.data.position import OtherOrderError, added, check_order, from_plain, position_in, to_plain
from beamclip.data.rows import read_rows
from beamclip.data.shards import Columns, Shard
from beamclip.data.worker_stream import WorkerShare, pinned, prefetched, training_batches, worker_rows
from beamclip.training.batch_norms import synchronised
from beamclip.training.checkpoint import CheckpointError, State, read_checkpoint, read_newest_checkpoint
from beamclip.training.checkpoint_store import discard_after, holds_claim, no_whole_checkpoint
from beamclip.training.checkpoint_writer import CheckpointWriter
from beamclip.training.config import BEST_BY, CadenceConfig, OptimConfig
from beamclip.training.decode_place import crop_store_bytes, decode_place
from beamclip.training.events import Damaged, Lost, Recorded, Saved, Started, Stopped
from beamclip.training.loop import NonFiniteLossError, Training, Validation, run_loop
from beamclip.training.manifest import Manifest
from beamclip.training.process import prepare_process
from beamclip.training.questions import Questions, Request
from beamclip.training.trace import Trace
from beamclip.training.worker_group import WorkerGroup, single_process

_REPEATABLE = (
    CheckpointError,
    NonFiniteLossError,
    torch.OutOfMemoryError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)
"""Errors that restarted workers would meet again. A lost peer, node or store shows as some other error."""


class TrainingError(RuntimeError):
    """A run could not be finished; the message is for the user."""


class NonRetryableError(RuntimeError):
    """A failure that a restart would only repeat: one line for the user, then the worker's traceback."""


@dataclass(frozen=True)
class Storage:
    """Where workers store what outlives them."""

    checkpoints: str
    """Address of the checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, besides the best one; see `checkpoint_store.prune`."""
    resumes: bool = False
    """Whether the run is resumed: if all its checkpoints are damaged, it fails instead of starting anew."""
    trace: str | None = None
    """Folder of the trace of samples; None for no trace."""
    claim: str = ""
    """Token that the command leaves beside the checkpoints; a worker that cannot read it sees another file
    system. `launch.fit` sets it."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker needs, as plain data and references that any node can resolve."""

    build_method: Callable[[torch.device], nn.Module]
    shards: list[Shard]
    """The shards of all data sets, one data set after the other."""
    columns: Columns
    image_size: int
    """Height and width of the pixels that reach the method."""
    batch_size: int
    """Images in one step, over all workers."""
    total_steps: int
    seed: int
    threads: int | None
    """CPU threads of torch in each worker; None: the node's processors, split among its workers."""
    stream: StreamConfig
    augmentation: Augmentation
    optim: OptimConfig
    cadence: CadenceConfig
    storage: Storage
    channel: Any = None
    """A Channel or RemoteChannel."""
    starts: Starts = NO_STARTS
    """Where the samples of each shard begin; `launch.fit` sets it, as starts.read_starts returns it."""
    read: RowReader = read_rows
    """How rows reach a worker: `read_rows`, through Ray Data, or `read_rows_here`."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    build_validation: Callable[[WorkerGroup], Validation] | None = None
    """Makes what scores the model meanwhile, on each worker."""


def train_in_process(job: TrainingJob, *, use_gpu: bool) -> None:
    """Train in this process, as the only worker.

    Raises:
        NonRetryableError: the run cannot be finished, however often this is called.
    """
    train_in_group(job, single_process(use_gpu=use_gpu))


def train_in_group(job: TrainingJob, group: WorkerGroup) -> None:
    """Train as one of a group of workers, all of which call this.

    Raises:
        NonRetryableError: the run cannot be finished, however often its workers are restarted.
    """
    try:
        _train(job, group)
    except _REPEATABLE as error:
        # Plain text: an exception of another package may not survive pickling on the way to the controller.
        raise NonRetryableError(f"{in_one_line(error)}\n\n{traceback.format_exc()}") from None


def in_one_line(error: BaseException) -> str:
    """Return an error's text in one line, preceded by its type unless the error is beamclip's own."""
    # The text of Ray's wrapper around an error in a task is the task's traceback; `cause` is the error.
    inner = getattr(error, "cause", None)
    cause = inner if isinstance(inner, BaseException) else error
    text = " ".join(str(cause).split())
    return text if type(cause).__module__.startswith("beamclip") else f"{type(cause).__name__}: {text}"


def _train(job: TrainingJob, group: WorkerGroup) -> None:
    rank, world_size = group.rank, group.world_size
    # Ray sets OMP_NUM_THREADS to the worker's share of a CPU, which may be one half.
    prepare_process(job.threads or max(1, (os.cpu_count() or 1) // group.local_world_size), job.seed)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    place = _place(job, group)
    start, state = _start(job, group, place)
    mixture, skipped = _mixture(job, state, world_size)
    # Before the model: the first rows arrive while it is built.
    with contextlib.ExitStack() as stack:
        # What was lost before is counted once, by rank 0.
        stream = _batches(job, mixture, start.step, skipped if rank == 0 else {}, group, place)
        batches = stack.enter_context(prefetched(stream, job.stream.prefetch_batches))
        training = _training(job, group)
        if state:
            training.load(state)
        writer = stack.enter_context(_writer(job, world_size)) if rank == 0 else None
        hooks = _Hooks(job, mixture, start.step, group, writer, _trace(job, start, group, stack))
        validation = job.build_validation(group) if job.build_validation else None
        run_loop(training, batches, job.cadence, hooks, validation)
    if rank == 0 and training.step < job.total_steps:
        job.channel.put(Stopped(training.step), wait=True)


@dataclass(frozen=True)
class _Start:
    """What all ranks agree on when they start."""

    number: int
    """Time in nanoseconds, which identifies and orders starts."""
    step: int
    """Step of the checkpoint to resume from; 0 for the beginning."""


def _place(job: TrainingJob, group: WorkerGroup) -> DecodePlace:
    window = min(job.stream.shuffle_window, sum(shard.samples for shard in job.shards))
    needed = crop_store_bytes(window, job.image_size, group.world_size)
    on_gpu = group.device.type == "cuda"
    return decode_place(job.stream.decode, needed, group.world_size, group.spare, on_gpu=on_gpu)


def _start(job: TrainingJob, group: WorkerGroup, place: DecodePlace) -> tuple[_Start, State | None]:
    """Return where to start, and the state: rank 0 chooses the newest whole checkpoint.

    Each rank loads that checkpoint, and hashes it once.
    """
    if not holds_claim(job.storage.checkpoints, job.storage.claim):
        node = socket.gethostname()
        raise CheckpointError(
            f"worker {group.rank} on {node} does not find the file that the command left at "
            f"{job.storage.checkpoints}. Give --checkpoints an address that all nodes reach, such as "
            "s3://bucket/run. If they do reach it, another command has taken over this run."
        )
    start, state = None, None
    if group.rank == 0:
        state, damaged = read_newest_checkpoint(job.storage.checkpoints)
        if state is None and damaged and job.storage.resumes:
            raise CheckpointError(no_whole_checkpoint(job.storage.checkpoints, damaged))
        start = _Start(time.time_ns(), state["step"] if state else 0)
        # Otherwise damaged checkpoints would count as whole when old ones are removed.
        discard_after(job.storage.checkpoints, after=start.step)
        for damage in damaged:
            job.channel.put(Damaged(f"{damage}; passed over"))
        job.channel.put(Started(start.step, group.world_size, place))
    # Plain numbers: to pass on a _Start, a process of Ray would have to import this module, and torch.
    number, step = group.broadcast_from_rank_zero(start and (start.number, start.step))
    if step and group.rank != 0:
        state = read_checkpoint(job.storage.checkpoints, step)
    return _Start(number, step), state


def _mixture(job: TrainingJob, state: State | None, world_size: int) -> tuple[Mixture, dict[str, int]]:
    """Return the order of the run, and what it has skipped before.

    Raises:
        OtherOrderError: the checkpoint's place in the data means something else in that order.
    """
    stream, counts = job.stream, source_counts(job.shards)
    mixture = mixture_of(counts, stream.data_weights, stream.shuffle_window, job.seed, world_size)
    if state is None:
        return mixture, {}
    position = from_plain(state["position"])
    check_order(position, mixture)
    if position.samples != state["step"] * job.batch_size:
        raise OtherOrderError(
            f"--batch-size {job.batch_size}: the run was begun with another. "
            f"Give --batch-size {position.samples // state['step']}."
        )
    return mixture, position.skipped


def _training(job: TrainingJob, group: WorkerGroup) -> Training:
    device = group.device
    method = job.build_method(device).to(device).to(memory_format=torch.channels_last)
    method.train()
    if job.optim.sync_batch_norm and group.world_size > 1:
        method = synchronised(method)
    return Training(
        group.prepared(method),
        job.optim,
        total_steps=job.total_steps,
        device=device,
        seed=job.seed,
        rank=group.rank,
    )


def _batches(
    job: TrainingJob,
    mixture: Mixture,
    step: int,
    skipped: dict[str, int],
    group: WorkerGroup,
    place: DecodePlace,
) -> Generator[Batch, None, None]:
    share = WorkerShare(mixture, job.batch_size, group.rank, group.world_size, job.optim.micro_batch)
    views = job.shards[0].views
    on_gpu = group.device.type == "cuda"
    decoding = Decoding(
        job.image_size,
        job.augmentation,
        job.captions,
        job.seed,
        views.widths[1:] if views else (),
        pinned=on_gpu,
    )
    by_tasks = decoding if place == "tasks" else None
    batches = training_batches(
        worker_rows(job.shards, job.starts, job.columns, share, step * job.batch_size, job.read, by_tasks),
        share,
        decoding,
        threads=job.stream.decode_threads,
        step=step,
        skipped=skipped,
    )
    batches = _told(batches, job.channel)
    return pinned(batches) if on_gpu else batches


def _told(batches: Generator[Batch, None, None], channel: Any) -> Generator[Batch, None, None]:
    """Yield the batches, and report the first samples lost on the way to them."""
    with contextlib.closing(batches):
        for batch in batches:
            if batch.lost:
                channel.put(Lost(batch.lost))
            yield batch


def _writer(job: TrainingJob, world_size: int) -> CheckpointWriter:
    def written(manifest: Manifest, seconds: float) -> None:
        # An event that is still on its way when the worker ends would be lost.
        job.channel.put(Saved(manifest.step, seconds), wait=True)

    return CheckpointWriter(
        job.storage.checkpoints,
        job.storage.keep_checkpoints,
        world_size=world_size,
        data=fingerprint(job.shards),
        on_written=written,
    )


def _trace(job: TrainingJob, start: _Start, group: WorkerGroup, stack: contextlib.ExitStack) -> Trace | None:
    if job.storage.trace is None:
        return None
    trace = Trace(
        Path(job.storage.trace),
        started=start.number,
        first_step=start.step,
        rank=group.rank,
        world_size=group.world_size,
    )
    stack.callback(trace.close)
    return trace


class _Hooks:
    """Callbacks of the loop on a worker; see loop.Hooks."""

    def __init__(
        self,
        job: TrainingJob,
        mixture: Mixture,
        first_step: int,
        group: WorkerGroup,
        writer: CheckpointWriter | None,
        trace: Trace | None,
    ) -> None:
        """Start at step `first_step`; only rank 0 has a `writer`."""
        self.job = job
        self.mixture = mixture
        self.group = group
        self.writer = writer
        self.trace = trace
        self.warned = False
        self.questions = Questions(first_step)
        self.ask_step = first_step

    def seen(self, step: int, batches: list[Batch]) -> None:
        """Write a step's samples to the trace, if there is one."""
        if self.trace is not None:
            self.trace.record(step, batches)

    def log(self, record: dict[str, float]) -> None:
        """On rank 0, send a record to the command; raise the error of a failed write of a checkpoint."""
        if self.writer is not None:
            self.writer.check()
            self.job.channel.put(Recorded({**record, "workers": self.group.world_size, "pid": os.getpid()}))

    def save(self, state: State, skipped: dict[str, int], record: dict[str, float]) -> None:
        """Gather what all ranks have skipped; on rank 0, have the checkpoint written.

        Raises:
            CheckpointError: another command has taken over the run.
        """
        every = _gathered(skipped, self.group.world_size)
        if self.writer is None:
            return
        if not holds_claim(self.job.storage.checkpoints, self.job.storage.claim):
            # Workers may outlive a killed command, and run beside those of the command that resumes its run.
            raise CheckpointError(
                f"{self.job.storage.checkpoints}: another command has taken over this run. "
                "This one ends and leaves the checkpoints to it."
            )
        position = position_in(self.mixture, state["step"] * self.job.batch_size, added(every))
        state = {**state, "position": to_plain(position)}
        self.writer.submit(state, record.get("loss"), record.get(BEST_BY))

    def asked(self, step: int) -> Request:
        """Return "stop" after Ctrl-C; "save" before the workers are restarted or a node is taken away."""
        if step < self.ask_step:
            return "nothing"
        # Rank 0 answers for all ranks, and decides when to ask again: their clocks would not agree.
        request: Request
        request, steps = self.group.broadcast_from_rank_zero(
            self._answer(step) if self.group.rank == 0 else None
        )
        self.ask_step = step + steps
        if request == "nothing" and not self.warned and self.group.preempted():
            self.warned = True
            return "save"
        return request

    def _answer(self, step: int) -> tuple[Request, int]:
        """Return what the run is to do, and the number of steps until the next question."""
        request: Request = self.job.channel.request(step)
        return request, self.questions.steps_until_next(step, time.monotonic())


def _gathered(counts: dict[str, int], world_size: int) -> list[dict[str, int]]:
    """Return the counts of all ranks."""
    every: list[Any] = [counts]
    if world_size > 1:
        every = [None] * world_size
        dist.all_gather_object(every, counts)
    return every
