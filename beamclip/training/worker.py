"""What each Ray Train worker runs: build the method, stream the rank's data, run the loop."""

import logging
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from beamclip.data.captions import CaptionConfig
from beamclip.data.shards import Columns, Shard
from beamclip.data.stream import Position, StreamConfig, prefetched, shuffled_rows, training_batches
from beamclip.data.transforms import AugmentConfig
from beamclip.training.checkpoint import State, position_of_rank, read_state, write_state
from beamclip.training.loop import CadenceConfig, Hooks, NonFiniteLossError, Training, run_loop
from beamclip.training.optim import OptimConfig
from beamclip.training.process import prepare_process

_REPEATABLE = (
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
"""What new workers would run into again. A lost peer, node or store shows as one of the other errors."""


class HopelessError(RuntimeError):
    """A failure that a restart would only repeat: one line for the user, then the worker's traceback."""


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs, of plain data and references that any node can resolve."""

    build_method: Callable[[torch.device], nn.Module]
    shards: list[Shard]
    columns: Columns
    image_size: int
    """Height and width of the pixels that reach the method."""
    total_steps: int
    seed: int
    threads: int | None
    """Of torch, in each worker; None: the node's processors, split among its workers."""
    stream: StreamConfig
    augmentation: AugmentConfig
    optim: OptimConfig
    cadence: CadenceConfig
    channel: Any
    """Handle of a Channel."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of Ray Train; `config["plan"]` is a reference to a Plan.

    Raises:
        HopelessError: the run cannot be finished, however often its workers are restarted.
    """
    try:
        _train(ray.get(config["plan"]))
    except _REPEATABLE as error:
        # Plain text: an exception of another package may not survive the way to the controller.
        raise HopelessError(f"{in_one_line(error)}\n\n{traceback.format_exc()}") from None


def in_one_line(error: BaseException) -> str:
    """The error's text, after its type where it is not one of ours."""
    # Ray's wrapper around an error in a task prints the task's traceback.
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    text = " ".join(str(cause).split())
    return text if type(cause).__module__.startswith("beamclip") else f"{type(cause).__name__}: {text}"


def _train(plan: Plan) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    workers_on_node = context.get_local_world_size()
    # Ray sets OMP_NUM_THREADS to the worker's share of a CPU, which may be one half.
    prepare_process(plan.threads or max(1, (os.cpu_count() or 1) // workers_on_node), plan.seed)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    state = _checkpoint()
    position = position_of_rank(state, rank, world_size) if state else Position()
    # Before the model: the first rows come in while it is built.
    stream = _batches(plan, rank, world_size, position)
    with prefetched(stream, plan.stream.prefetch_batches) as batches:
        training = _training(plan, rank)
        if state:
            training.load(state)
        run_loop(training, batches, plan.cadence, _hooks(plan, rank, world_size))


def _training(plan: Plan, rank: int) -> Training:
    device = ray.train.torch.get_device()
    method = plan.build_method(device).to(device).to(memory_format=torch.channels_last)
    method.train()
    # Rank 0's buffers are the ones that are saved; sending them to the others each step would change nothing.
    wrapped = ray.train.torch.prepare_model(method, parallel_strategy_kwargs={"broadcast_buffers": False})
    return Training(
        wrapped, plan.optim, total_steps=plan.total_steps, device=device, seed=plan.seed, rank=rank
    )


def _checkpoint() -> State | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return read_state(Path(folder))


def _batches(plan: Plan, rank: int, world_size: int, start: Position) -> Any:
    stream = plan.stream
    rows = shuffled_rows(
        plan.shards,
        plan.columns,
        seed=plan.seed,
        rank=rank,
        world_size=world_size,
        buffer=stream.shuffle_buffer,
        start=start,
    )
    return training_batches(
        rows,
        batch_size=stream.batch_size // world_size // plan.optim.accumulation,
        image_size=plan.image_size,
        augment=plan.augmentation,
        captions=plan.captions,
        seed=plan.seed,
        start=start,
        threads=stream.decode_threads,
    )


def _hooks(plan: Plan, rank: int, world_size: int) -> Hooks:
    def log(record: dict[str, float]) -> None:
        if rank == 0:
            plan.channel.put.remote({**record, "pid": os.getpid()})

    def save(state: State, record: dict[str, float]) -> None:
        position: Position = state.pop("position")
        positions = _gathered(position, world_size)
        _report({**state, "positions": positions}, record, rank)
        if rank == 0:
            # Waits: what is still on its way when the last step's worker ends would be lost.
            ray.get(plan.channel.put.remote({"skipped": _summed(positions), "saved_step": state["step"]}))

    def stopping() -> bool:
        return bool(ray.get(plan.channel.stop_requested.remote()))

    return Hooks(log=log, save=save, stopping=stopping)


def _gathered(position: Position, world_size: int) -> list[Position]:
    positions: list[Any] = [position]
    if world_size > 1:
        positions = [None] * world_size
        dist.all_gather_object(positions, replace(position))
    return positions


def _summed(positions: list[Position]) -> dict[str, int]:
    reasons = {reason for position in positions for reason in position.skipped}
    return {
        reason: sum(position.skipped.get(reason, 0) for position in positions) for reason in sorted(reasons)
    }


def _report(state: State, record: dict[str, float], rank: int) -> None:
    name = f"step={state['step']:08d}"
    if rank != 0:
        ray.train.report(record, checkpoint=None, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory(prefix="beamclip-checkpoint-") as folder:
        write_state(state, Path(folder))
        ray.train.report(
            record, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name
        )
