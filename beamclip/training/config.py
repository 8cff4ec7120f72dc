"""Options of training. This module must not import torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from beamclip.errors import InputError
from beamclip.places import PathOrAddress
from beamclip.ranges import Count, Natural, NonNegative, Positive, Range, Share, check_ranges

Optimizer = Literal["adamw", "sgd", "lars"]
Schedule = Literal["cosine", "linear", "constant"]
WEIGHT_DECAY: dict[Optimizer, float] = {"adamw": 0.05, "sgd": 1e-4, "lars": 1e-6}
"""Default weight decay of each optimiser."""
BEST_BY = "val_zeroshot_top1"
"""The score of a validation by which the best checkpoint is chosen."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation of a run."""

    epochs: Positive | None = None
    """Passes over the data: as many samples as all data sets hold together; by default chosen from their
    number. Ignored if `steps` or `samples` is given."""
    steps: Count | None = None
    """Optimiser steps; by default as many as `epochs` takes."""
    samples: Count | None = None
    """Samples to see, rounded up to whole batches, in place of `epochs` or `steps`."""
    optimizer: Optimizer = "adamw"
    """adamw (arXiv 1711.05101). sgd: with Nesterov's momentum. lars (arXiv 1708.03888): momentum whose steps
    are proportional to the norms of the tensors, for very large batches."""
    momentum: Share = 0.9
    """Momentum of sgd and lars."""
    lr: Positive | None = None
    """Peak learning rate, not scaled by the batch size; by default 0.002 for distillation, 0.001 for
    pre-training and 3e-5 for that with --init. Required for sgd and lars."""
    weight_decay: NonNegative | None = None
    """Weight decay; none on biases, norms, embeddings and scalars. By default 0.05 for adamw, which decouples
    it from the gradient, 1e-4 for sgd and 1e-6 for lars."""
    shared_weight_decay: NonNegative = 0.2
    """Weight decay of the tensors that MS-CLIP's two towers share, which get gradients from both."""
    layer_decay: Annotated[float, Range(0, 1, beyond_least=True)] = 1.0
    """Factor of the learning rate from each layer to the one below it (arXiv 2003.10555): below 1, layers
    near the input change less. For fine-tuning."""
    frozen_layers: Natural = 0
    """Layers of the image tower, counted from the input as for layer_decay, that keep their weights and the
    statistics of their batch norms. For fine-tuning."""
    warmup: Share = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up: a half cosine or a line to lr_floor, or level."""
    lr_floor: Share = 0.0
    """Share of the peak learning rate that the schedule and the cooldown end at."""
    cooldown: Share = 0.0
    """Share of the steps, the last ones, over which the learning rate falls in a straight line to lr_floor;
    the schedule has only the steps before."""
    clip_norm: NonNegative = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    micro_batch: Count | None = None
    """Most images that a worker passes through the networks at a time, for less memory; by default its whole
    share of a batch. A contrastive loss still compares all pairs of the batch, at the cost of a second
    forward pass."""
    sync_batch_norm: bool = False
    """Have the batch norms of the trained networks take their statistics over the images of all workers, and
    not of each worker's own: for few images on each GPU. Needs --use-gpu."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, slower."""
    compile: bool = False
    """Compile the networks, a teacher's too, with torch.compile: a minute or two at the start of each worker,
    then faster steps; mostly worth it on a GPU."""
    ema_decay: Share = 0.0
    """Decay per step of an exponential moving average of the weights, which is exported in their place; 0
    switches it off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the device computes it natively. fp16, for GPUs
    without bf16, scales the loss, and passes over steps whose gradients overflow."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.steps is not None and self.samples is not None:
            raise InputError(f"steps is {self.steps} and samples {self.samples}: give one of them.")
        if self.optimizer != "adamw" and self.lr is None:
            raise InputError(f"optimizer {self.optimizer} has no default learning rate: give lr.")
        if self.warmup + self.cooldown > 1:
            raise InputError(
                f"warmup is {self.warmup} and cooldown {self.cooldown}: they are more than all steps. "
                "Lower one of them."
            )

    @property
    def has_length(self) -> bool:
        """Whether the length of the training is given."""
        return (self.epochs, self.steps, self.samples) != (None, None, None)


@dataclass(frozen=True)
class CadenceConfig:
    """How often a run logs and saves."""

    log_every: Count = 10
    """Steps between two records of metrics."""
    checkpoint_every: Count = 200
    """Steps between two checkpoints; there is always one at the end."""
    trace_samples: bool = False
    """Write the keys of the samples of every step, for each worker, to trace/ in the run's folder, on the
    disk of the worker's node."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class ValidationConfig:
    """Validation: scores on a few held-out images while the model trains."""

    eval_every: Natural | None = None
    """Steps between two validations; another one follows the last step. 0: none. By default as many as fit
    into 1 % of the training's arithmetic, 40 at most; none where these are fewer than 3, unless --val-data is
    given."""
    val_data: PathOrAddress = None
    """Labelled images to validate on, of the same kinds and classes as --eval-data; by default images of
    --eval-data itself."""
    val_images: Count | None = None
    """Images to validate on at most, at even distances in the data; by default one for every 400 that are
    trained on in all epochs, from 100 to 2,000."""
    export_checkpoint: Literal["last", "best"] = "last"
    """Weights to export: those of the last step, or those with the highest zero-shot top-1 in validation,
    which are then saved at each validation. best requires --val-data: weights that were chosen on the images
    that they are scored on have too high a score."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class CheckpointConfig:
    """Where checkpoints are saved, and how many are kept."""

    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep; the one with the highest zero-shot top-1 in validation is kept as
    well, or the one with the lowest loss where none was validated."""
    checkpoints: PathOrAddress = None
    """Folder or fsspec address of the checkpoints; by default in the storage of a cluster, if it has one
    (BEAMCLIP_STORAGE), else checkpoints/ in the run's folder. Workers on several nodes need one that all
    nodes reach."""

    def __post_init__(self) -> None:
        check_ranges(self)
