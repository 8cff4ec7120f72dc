"""The one training loop: steps, precision, clipping, accumulation and cadence.

It knows no loss, no Ray and no MLflow: a method turns batches into (loss, metrics), and what leaves
the loop leaves it through the callbacks of `Hooks`.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from beamclip.data.position import Position
from beamclip.data.stream import Batch
from beamclip.training.average import WeightAverage
from beamclip.training.checkpoint import State
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.optim import autocast_dtype, build_optimizer, learning_rate


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became infinite or not a number."""


Request = Literal["nothing", "save", "stop"]


class Hooks(Protocol):
    """What the loop calls, on every rank at the same steps."""

    def seen(self, step: int, batches: list[Batch]) -> None:
        """After each step, with what it was made of; steps count from 1."""

    def log(self, record: dict[str, float]) -> None:
        """Every `log_every` steps, with means over the ranks."""

    def save(self, state: State, position: Position, record: dict[str, float]) -> None:
        """With the whole state, whose tensors training goes on to change, where this rank's stream stands,
        and the last record."""

    def asked(self, step: int) -> Request:
        """After each step but the last: whether to save now, or to save and end; every rank gets the same."""


@runtime_checkable
class HasBeginStep(Protocol):
    """A method in which something depends on the step."""

    def begin_step(self, step: int, total_steps: int) -> None:
        """Called once a step, before its micro-batches; `step` counts from 0."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """What a loss needs of a batch, one row each or one value for all."""

    learned: tuple[Tensor, ...]
    """Gradients flow through these."""
    given: tuple[Tensor, ...] = ()
    """And not through these."""


@runtime_checkable
class GradCached(Protocol):
    """A method whose loss compares the samples of a batch with each other.

    Called with a batch alone it returns (loss, metrics). Called with a batch and gradients of its `learned`
    it returns their sum of products, whose gradient is the batch's part of the loss's.
    """

    def embed(self, batch: Batch) -> EmbeddedBatch:
        """The samples on their own."""

    def compare(self, parts: list[EmbeddedBatch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of all parts of a batch together."""


class Training:
    """The state of a run between two steps, and what turns a batch into the next state."""

    def __init__(
        self,
        method: nn.Module,
        config: OptimConfig,
        *,
        total_steps: int,
        device: torch.device,
        seed: int,
        rank: int = 0,
    ) -> None:
        """Args:
        method: on the device already, wrapped in DDP where there are several ranks.
        seed, rank: decide, with the step, what dropout leaves out.
        """
        self.method = method
        self.config = config
        self.total_steps = total_steps
        self.device = device
        self.seed = (seed, rank)
        self.step = 0
        if config.grad_checkpointing:
            self.bare.set_grad_checkpointing()  # type: ignore[operator]
        if config.compile:
            self.bare.compile_networks()  # type: ignore[operator]
        self.optimizer = build_optimizer(method, config)
        self.dtype = autocast_dtype(config.precision, device)
        self.ema = WeightAverage(self.bare, config.ema_decay) if config.ema_decay else None

    @property
    def bare(self) -> nn.Module:
        """The method without DDP around it."""
        wrapped = isinstance(self.method, DistributedDataParallel)
        module: nn.Module = self.method.module if wrapped else self.method  # type: ignore[assignment]
        return module

    def state(self) -> State:
        """Weights, average, optimiser and step: tensors, numbers and strings only."""
        return {
            "method": self.bare.state_dict(),
            "ema": self.ema.tensors if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load(self, state: State) -> None:
        """Continue from `state()`."""
        self.bare.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load(trained_weights(state))
        self.step = state["step"]

    def advance(self, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """One optimiser step over micro-batches of equal size.

        Returns:
            The norm of the gradient before clipping, and the metrics: of a GradCached method those of the
            whole batch, of another their means over the micro-batches. The host is not synchronised.
        """
        lr = learning_rate(self.step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if isinstance(self.bare, HasBeginStep):
            self.bare.begin_step(self.step, self.total_steps)
        if isinstance(self.bare, GradCached) and len(batches) > 1:
            metrics = self._accumulate_coupled(self.bare, batches)
        else:
            metrics = self._accumulate(batches)
        limit = self.config.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.method.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.bare, first=self.step == 0)
        self.step += 1
        return norm, metrics

    def _accumulate(self, batches: list[Batch]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with self._synchronised(last=index == len(batches) - 1):
                with self._forward(index):
                    loss, metrics = self.method(batch_to_device(batch, self.device))
                (loss / len(batches)).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value / len(batches)
        return sums

    def _accumulate_coupled(self, method: GradCached, batches: list[Batch]) -> dict[str, Tensor]:
        """Gradients of the loss over all micro-batches together, at the memory of one (arXiv 2101.06983).

        Embed each without a graph; take the gradient of the loss with respect to the embeddings; embed each
        once more, and go on from there.
        """
        parts = []
        with torch.no_grad(), _statistics_kept(self.bare):
            for index, batch in enumerate(batches):
                with self._forward(index):
                    embedded = method.embed(batch_to_device(batch, self.device))
                leaves = tuple(tensor.detach().requires_grad_() for tensor in embedded.learned)
                parts.append(EmbeddedBatch(leaves, embedded.given))
        with self._forward(len(batches)):
            loss, metrics = method.compare(parts)
        loss.backward()
        for index, batch in enumerate(batches):
            gradients = tuple(
                torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in parts[index].learned
            )
            with self._synchronised(last=index == len(batches) - 1):
                with self._forward(index):
                    products, _ = self.method(batch_to_device(batch, self.device), gradients)
                products.backward()
        return {"loss": loss.detach(), **metrics}

    def _synchronised(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """DDP's exchange of gradients takes place in the last backward pass of a step."""
        if isinstance(self.method, DistributedDataParallel) and not last:
            return self.method.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _forward(self, index: int) -> Iterator[None]:
        """Precision and random numbers of a forward pass.

        Each step and micro-batch has its own numbers: after a restart, or in a second pass, dropout drops
        what it dropped before.
        """
        torch.manual_seed(int(np.random.SeedSequence((*self.seed, self.step, index)).generate_state(1)[0]))
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            yield


def trained_weights(state: State) -> dict[str, Tensor]:
    """The method's weights that a run ends with: the average where one was kept, else the last ones."""
    return dict(state["method"] if state["ema"] is None else state["ema"])


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics without adding them to the running ones."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; unchanged on a CPU."""
    if device.type == "cpu":
        return batch
    pixels, draws = (tensor.to(device, non_blocking=True) for tensor in (batch.pixels, batch.draws))
    embeddings = tuple(tensor.to(device, non_blocking=True) for tensor in batch.embeddings)
    return replace(batch, pixels=pixels, draws=draws, embeddings=embeddings)


def on_gpu(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a GPU, copied on a stream of their own.

    The host queues a step and asks for the next batch while the GPU computes, so that a copy from pinned
    memory takes place beside the step before it.
    """
    side = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(side):
            moved = batch_to_device(batch, device)
        main = torch.cuda.current_stream(device)
        main.wait_stream(side)
        for tensor in (moved.pixels, moved.draws, *moved.embeddings):
            # Its memory must not go to the next copy before the step is through with it.
            tensor.record_stream(main)
        yield moved


def run_loop(
    training: Training, batches: Iterator[Batch], cadence: CadenceConfig, hooks: Hooks
) -> dict[str, float]:
    """Train until the last step, or until somebody asks to stop; saves at the end in either case.

    Returns:
        The last record.

    Raises:
        NonFiniteLossError: with the step; no checkpoint is taken after it.
    """
    record: dict[str, float] = {}
    window = Window(training.device)
    if training.device.type == "cuda":
        batches = on_gpu(batches, training.device)
    while training.step < training.total_steps:
        micro = [window.timed(batches) for _ in range(training.config.accumulation)]
        norm, metrics = training.advance(micro)
        window.add({**metrics, "grad_norm": norm}, sum(len(batch.keys) for batch in micro))
        hooks.seen(training.step, micro)
        done = training.step == training.total_steps
        request: Request = "nothing" if done else hooks.asked(training.step)
        saving = done or request != "nothing" or training.step % cadence.checkpoint_every == 0
        if not (saving or training.step % cadence.log_every == 0):
            continue
        record = window.close(training)
        check_finite(record)
        hooks.log(record)
        if saving:
            hooks.save(training.state(), micro[-1].position, record)
            window.restart()
        if request == "stop":
            break
    return record


def check_finite(record: dict[str, float]) -> None:
    """Raises NonFiniteLossError where the loss or the gradient's norm is no finite number."""
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(record[name])]
    if bad:
        values = ", ".join(f"{name} {record[name]}" for name in bad)
        raise NonFiniteLossError(
            f"step {int(record['step'])}: {values}. Training stopped; the checkpoint before it is good. "
            "Lower --lr, lengthen --warmup, or set --precision fp32."
        )


class Window:
    """Sums since the last record, kept on the device until a record is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Forget everything; what happened between two windows is not counted as training."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.images, self.waited = 0, 0, 0.0
        self.began = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it took counts as waiting for data."""
        asked = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - asked
        return batch

    def add(self, metrics: dict[str, Tensor], images: int) -> None:
        """Add the metrics of one step over so many images of this rank."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.steps += 1
        self.images += images

    def close(self, training: Training) -> dict[str, float]:
        """The record of the window: means over steps and ranks, rates over all ranks."""
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        means = torch.stack([*self.sums.values()]) / self.steps
        if world_size > 1:
            dist.all_reduce(means)
            means /= world_size
        values = means.tolist()
        seconds = time.perf_counter() - self.began
        record = {
            "step": training.step,
            **dict(zip(self.sums, values, strict=True)),
            "lr": training.optimizer.param_groups[0]["lr"],
            "images_per_second": world_size * self.images / seconds,
            "data_wait_share": self.waited / seconds,
            "window_seconds": seconds,
        }
        if training.device.type == "cuda":
            record["gpu_memory_gib"] = torch.cuda.max_memory_allocated(training.device) / 2**30
        self.restart()
        return record
