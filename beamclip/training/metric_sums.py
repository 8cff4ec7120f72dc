"""Metrics of the steps from one record to the next, summed on the device and over the ranks."""

import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from beamclip.data.batch import Batch


class MetricSums:
    """Sums of the metrics since the last record, kept on the device until the next record is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Reset the sums and the clock, so that the time spent on saving does not count as training."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.empty_steps, self.images, self.waited = 0, 0, 0, 0.0
        self.began = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch; the time it took counts as waiting for data."""
        asked = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - asked
        return batch

    def add(self, metrics: dict[str, Tensor], images: int) -> None:
        """Add the metrics of one step, none if it changed nothing, and its good images on this rank."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.steps += 1
        self.empty_steps += not metrics
        self.images += images

    def close(self, step: int, lr: float) -> dict[str, float]:
        """Return the record since the last one, and restart.

        The record has means over the ranks and the steps that changed something, and rates over all ranks.
        Every rank must call this.
        """
        images = torch.tensor(float(self.images), device=self.device)
        *sums, images_of_all = summed_over_ranks(torch.stack([*self.sums.values(), images])).tolist()
        divisor = world_size() * max(1, self.steps - self.empty_steps)
        seconds = time.perf_counter() - self.began
        record = {
            "step": step,
            **{name: value / divisor for name, value in zip(self.sums, sums, strict=True)},
            "lr": lr,
            "images_per_second": images_of_all / seconds,
            "data_wait_share": self.waited / seconds,
            "window_seconds": seconds,
        }
        if self.empty_steps:
            record["empty_steps"] = self.empty_steps
        if self.device.type == "cuda":
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.restart()
        return record


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed_over_ranks(values: Tensor) -> Tensor:
    """Return the sums of values over all ranks, in place; a collective."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
