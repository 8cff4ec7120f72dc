"""The one training loop: steps, micro-batches, precision, clipping and cadence.

It knows no loss, no Ray and no MLflow: a method turns batches into (loss, metrics), sums over the samples
times their weights, and all output goes through the callbacks of `Hooks`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from beamclip.data.batch import Batch
from beamclip.errors import InputError
from beamclip.training.average import WeightAverage, evaluated
from beamclip.training.checkpoint import CheckpointError, State
from beamclip.training.config import CadenceConfig, OptimConfig
from beamclip.training.metric_sums import MetricSums, summed_over_ranks, world_size
from beamclip.training.optim import autocast_dtype, build_optimizer, learning_rate, set_learning_rate
from beamclip.training.questions import Request


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became infinite or not a number."""


LEAST_LOSS_SCALE = 2.0**-10
"""With fp16: a scale of the loss below which its gradients are not finite, rather than too large."""


class Hooks(Protocol):
    """Callbacks of the loop, called on every rank at the same steps."""

    def seen(self, step: int, batches: list[Batch]) -> None:
        """Called after each step with its micro-batches; steps count from 1."""

    def log(self, record: dict[str, float]) -> None:
        """Called every `log_every` steps, after each validation and before each save.

        Args:
            record: means over the ranks and the steps since the last record, and the scores of a validation.
        """

    def save(self, state: State, skipped: dict[str, int], record: dict[str, float]) -> None:
        """Save a checkpoint. `state` holds live tensors: copy before returning.

        Args:
            skipped: samples that this rank has lost so far, by reason.
            record: the record that was just logged.
        """

    def asked(self, step: int) -> Request:
        """Called after each step but the last; returns the same request on every rank."""


@dataclass(frozen=True)
class Validation:
    """How a model is scored while it trains."""

    score: Callable[[Any], dict[str, float]]
    """Scores the method, which is in eval mode; called on every rank. Rank 0's result is recorded."""
    every: int
    """Steps between two validations; another one follows the last step."""
    saves: bool = False
    """Whether a checkpoint follows each validation, and not only those that are due anyway."""

    def due(self, step: int, total_steps: int) -> bool:
        """Whether the model is scored after a step, counted from 1."""
        return step == total_steps or step % self.every == 0


@runtime_checkable
class HasBeginStep(Protocol):
    """A method that needs to know the step."""

    def begin_step(self, step: int, total_steps: int) -> None:
        """Called once a step, before its micro-batches; `step` counts from 0."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """Inputs of a loss that compares samples: one row for each sample, or one value for all."""

    learned: tuple[Tensor, ...]
    """Gradients flow through these."""
    given: tuple[Tensor, ...]
    """Gradients do not flow through these."""
    global_size: int
    """Samples in the step, over all workers and micro-batches; see Batch."""


@runtime_checkable
class GradCached(Protocol):
    """A method whose loss compares the samples of a batch with each other.

    Called with a batch alone, it returns (loss, metrics). Called with a batch and the loss's gradients
    with respect to its `learned` tensors, it returns the sum of the tensors times these gradients instead of
    the loss. The gradient of this sum is the batch's part of the gradient of the loss.
    """

    compares_samples: bool
    """Whether the loss compares samples at all; if not, parts of a batch need not know of each other."""

    def embed(self, batch: Batch) -> EmbeddedBatch:
        """Embed the samples, each independently of the others."""

    def compare(self, parts: list[EmbeddedBatch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and metrics of all parts of a batch together."""


class Training:
    """A method with its optimiser and moving average, and the step that changes them."""

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
        """Build the optimiser and the moving average of a method.

        Args:
            method: on the device already, wrapped in DDP if there are several ranks.
            seed, rank: decide, together with the step, what dropout drops.
        """
        self.method = method
        self.config = config
        self.total_steps = total_steps
        self.device = device
        self.seed = (seed, rank)
        self.step = 0
        self.lr = 0.0
        """Learning rate of the last step, before the factors of layers."""
        if config.grad_checkpointing:
            self.bare.set_grad_checkpointing()  # type: ignore[operator]
        if config.compile:
            self.bare.compile_networks()  # type: ignore[operator]
        self.optimizer = build_optimizer(method, config)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        self.ema = WeightAverage(self.bare, config.ema_decay) if config.ema_decay else None

    @property
    def bare(self) -> nn.Module:
        """The method without DDP around it."""
        wrapped = isinstance(self.method, DistributedDataParallel)
        module: nn.Module = self.method.module if wrapped else self.method  # type: ignore[assignment]
        return module

    def state(self) -> State:
        """Return weights, average, optimiser state and step: live tensors and plain values only."""
        return {
            "method": self.bare.state_dict(),
            "ema": self.ema.tensors if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }

    def load(self, state: State) -> None:
        """Continue from what `state()` returned."""
        self.bare.load_state_dict(state["method"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                f"step {state['step']}: the checkpoint is of a run that trains other tensors ({error}). "
                "Resume it with its own --frozen-layers, --lock-image, --lock-text, --layer-decay and "
                "--optimizer."
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load(trained_weights(state))
        self.step = state["step"]

    def validated(self, validation: Validation) -> dict[str, float]:
        """Score the weights that would be exported, in eval mode; return the scores and the seconds it took.

        Nothing changes that later steps depend on: weights and modes are as before, and each step seeds its
        random numbers by itself.
        """
        began = time.perf_counter()
        precision = torch.autocast(
            self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None
        )
        # What was compiled for training would be compiled once more, for another mode and batch.
        eager = torch.compiler.set_stance("force_eager")
        with evaluated(self.bare, self.ema), torch.no_grad(), precision, eager:
            scores = validation.score(self.bare)
        return {**scores, "validation_seconds": time.perf_counter() - began}

    def advance(self, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one optimiser step over micro-batches; if no rank has a good sample, count the step only.

        The method sees weights scaled by world_size / (good samples of all ranks in this step): averaged over
        ranks, a sum with these weights is the mean over these samples.

        Returns:
            The norm of the gradient before clipping, and "loss" and the method's metrics: those of the whole
            batch if the loss compares samples, else sums over the micro-batches. Tensors on the device; the
            host does not wait for them. No metrics if nothing changed.
        """
        weights = [batch.weights.to(self.device, non_blocking=True) for batch in batches]
        samples = summed_over_ranks(torch.cat(weights).sum())
        # Only a rank without a good sample of its own has to ask, and so to wait for the device.
        if not any(batch.good for batch in batches) and not samples.item():
            self.step += 1
            return torch.zeros((), device=self.device), {}
        scale = world_size() / samples.clamp(min=1)
        norm, metrics = self._update(
            [replace(batch, weights=own * scale) for batch, own in zip(batches, weights, strict=True)]
        )
        self.step += 1
        return norm, metrics

    def _update(self, batches: list[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        self.lr = learning_rate(self.step, self.total_steps, self.config)
        set_learning_rate(self.optimizer, self.lr)
        if isinstance(self.bare, HasBeginStep):
            self.bare.begin_step(self.step, self.total_steps)
        if isinstance(self.bare, GradCached) and self.bare.compares_samples and len(batches) > 1:
            metrics = self._accumulate_coupled(self.bare, batches)
        else:
            metrics = self._accumulate(batches)
        limit = self.config.clip_norm or math.inf
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.method.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            # A gradient that overflows is no failure: the step is passed over, and the scale is halved.
            metrics["loss_scale"] = norm.new_tensor(self.scaler.get_scale())
            norm = norm.where(norm.isfinite(), 0.0)
        if self.ema is not None:
            self.ema.update(self.bare)
        return norm, metrics

    def _accumulate(self, batches: list[Batch]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            with self._synchronised(last=index == len(batches) - 1):
                with self._forward(index):
                    loss, metrics = self.method(batch_to_device(batch, self.device))
                self.scaler.scale(loss).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def _accumulate_coupled(self, method: GradCached, batches: list[Batch]) -> dict[str, Tensor]:
        """Compute gradients of the loss over all micro-batches, in the memory of one (arXiv 2101.06983).

        Embed each without a graph; take the gradient of the loss with respect to the embeddings; embed each
        again, now with a graph, and propagate that gradient through it.
        """
        parts = []
        with torch.no_grad(), _statistics_kept(self.bare):
            for index, batch in enumerate(batches):
                with self._forward(index):
                    embedded = method.embed(batch_to_device(batch, self.device))
                leaves = tuple(tensor.detach().requires_grad_() for tensor in embedded.learned)
                parts.append(replace(embedded, learned=leaves))
        with self._forward(len(batches)):
            loss, metrics = method.compare(parts)
        self.scaler.scale(loss).backward()
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
        """Have DDP exchange gradients only in the last backward pass of a step."""
        if isinstance(self.method, DistributedDataParallel) and not last:
            return self.method.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _forward(self, index: int) -> Iterator[None]:
        """Set precision and random numbers of a forward pass.

        Each step and micro-batch has its own seed: after a restart, or in a second pass, dropout drops the
        same units as before.
        """
        torch.manual_seed(int(np.random.SeedSequence((*self.seed, self.step, index)).generate_state(1)[0]))
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            yield


def trained_weights(state: State) -> dict[str, Tensor]:
    """Return the weights that a run produces: the moving average if there is one, else the last ones."""
    return dict(state["method"] if state["ema"] is None else state["ema"])


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Have batch norms use the batch's statistics without updating the running ones."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on `device`; unchanged if that is the CPU."""
    if device.type == "cpu":
        return batch
    return batch.with_tensors(lambda tensor: tensor.to(device, non_blocking=True))


def on_gpu(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on a GPU, copied there on a separate CUDA stream.

    The host queues a step and asks for the next batch while the GPU computes, so a copy from pinned
    memory overlaps with the previous step.
    """
    side = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(side):
            moved = batch_to_device(batch, device)
        main = torch.cuda.current_stream(device)
        main.wait_stream(side)
        for tensor in moved.tensors():
            # The next copy must not reuse its memory before the step has finished with it.
            tensor.record_stream(main)
        yield moved


def run_loop(
    training: Training,
    batches: Iterator[Batch],
    cadence: CadenceConfig,
    hooks: Hooks,
    validation: Validation | None = None,
) -> dict[str, float]:
    """Train until the last step, or until asked to stop, and save at the end in either case.

    Args:
        validation: how the model is scored meanwhile; the time it takes counts as none of training's.

    Returns:
        The last record; empty if no step was left.

    Raises:
        NonFiniteLossError: the loss or its gradient is not finite; nothing is saved after that.
        InputError: the last step is done, and none of the run had a usable sample; nothing more is saved.
    """
    record: dict[str, float] = {}
    sums = MetricSums(training.device)
    if training.device.type == "cuda":
        batches = on_gpu(batches, training.device)
    while training.step < training.total_steps:
        micro = [sums.timed(batches)]
        while not micro[-1].ends_step:
            micro.append(sums.timed(batches))
        norm, metrics = training.advance(micro)
        sums.add({**metrics, "grad_norm": norm} if metrics else {}, sum(batch.good for batch in micro))
        hooks.seen(training.step, micro)
        done = training.step == training.total_steps
        request: Request = "nothing" if done else hooks.asked(training.step)
        due = validation if validation and validation.due(training.step, training.total_steps) else None
        saving = done or request != "nothing" or training.step % cadence.checkpoint_every == 0
        saving = saving or (due is not None and due.saves)
        if not (saving or due or training.step % cadence.log_every == 0):
            continue
        record = sums.close(training.step, training.lr)
        check_finite(record)
        if due:
            record |= training.validated(due)
            sums.restart()
        hooks.log(record)
        # An optimiser has a state from its first update on, also in a resumed run.
        if done and not training.optimizer.state:
            raise InputError(
                f"no step had a sample with a usable image, so nothing was learned; skipped on this worker: "
                f"{micro[-1].skipped}."
            )
        if saving:
            hooks.save(training.state(), micro[-1].skipped, record)
            sums.restart()
        if request == "stop":
            break
    return record


def check_finite(record: dict[str, float]) -> None:
    """Raise NonFiniteLossError if the loss or the norm of its gradient is there, but not finite.

    With fp16, it is the scale of the loss that tells: gradients that overflow at any scale are not finite.
    """
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(record.get(name, 0.0))]
    bad += [name for name in ("loss_scale",) if record.get(name, 1.0) < LEAST_LOSS_SCALE]
    if bad:
        values = ", ".join(f"{name} {record[name]}" for name in bad)
        raise NonFiniteLossError(
            f"step {int(record['step'])}: {values}. Training stopped; earlier checkpoints are good. "
            "Lower --lr, lengthen --warmup, or set --precision fp32."
        )
