"""The workers that train together, as one of them sees them: of Ray Train (`ray_train`), or one process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
