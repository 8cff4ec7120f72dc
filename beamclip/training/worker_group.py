"""The workers that train together, as one of them sees them: those of Ray Train, or one process alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from torch import nn


@dataclass(frozen=True)
class WorkerGroup:
    """Who this worker is, and what it does together with the others."""

    rank: int
    world_size: int
    local_world_size: int
    """Workers on this one's node."""
    device: torch.device
    broadcast_from_rank_zero: Callable[[Any], Any]
    """Something small of rank 0 for all; called by every worker, as often."""
    prepared: Callable[[nn.Module], nn.Module]
    """A method wrapped so that its gradients are those of all workers."""
    preempted: Callable[[], bool]
    """Whether a node will soon be taken away; called by every worker, as often."""


def ray_train_group() -> WorkerGroup:
    """The workers of the Ray Train run that this process is one of."""
    context = ray.train.get_context()
    return WorkerGroup(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_world_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
        broadcast_from_rank_zero=ray.train.collective.broadcast_from_rank_zero,
        prepared=_data_parallel,
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )


def single_process(*, use_gpu: bool) -> WorkerGroup:
    """This process by itself."""
    return WorkerGroup(
        rank=0,
        world_size=1,
        local_world_size=1,
        device=torch.device("cuda" if use_gpu else "cpu"),
        broadcast_from_rank_zero=lambda content: content,
        prepared=lambda method: method,
        preempted=lambda: False,
    )


def _data_parallel(method: nn.Module) -> nn.Module:
    # Rank 0's buffers are the ones that are saved; sending them to the others each step would change nothing.
    return ray.train.torch.prepare_model(method, parallel_strategy_kwargs={"broadcast_buffers": False})
