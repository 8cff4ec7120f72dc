"""The workers that train together, as one of them sees them: Ray Train workers, or a single process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class WorkerGroup:
    """A worker's place in its group, and what it does together with the others."""

    rank: int
    world_size: int
    local_world_size: int
    """Number of workers on this worker's node."""
    device: torch.device
    broadcast_from_rank_zero: Callable[[Any], Any]
    """Returns rank 0's argument, a small object, on every rank; all ranks must call it equally often."""
    prepared: Callable[[nn.Module], nn.Module]
    """Wraps a method so that its gradients are averaged over all workers."""
    preempted: Callable[[], bool]
    """Returns whether a node will soon be taken away; all ranks must call it equally often."""
    spare: Mapping[str, float] | None = None
    """What the workers leave of the cluster's resources; None if Ray does not run them."""


def single_process(*, use_gpu: bool) -> WorkerGroup:
    """Return a group of which this process is the only worker."""
    return WorkerGroup(
        rank=0,
        world_size=1,
        local_world_size=1,
        device=torch.device("cuda" if use_gpu else "cpu"),
        broadcast_from_rank_zero=lambda content: content,
        prepared=lambda method: method,
        preempted=lambda: False,
    )
