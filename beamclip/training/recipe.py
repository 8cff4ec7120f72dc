"""Choose the batch size, epochs and learning rate that are not given, from the number of images.

A student or a small CLIP model needs a certain number of steps rather than of epochs: ten epochs of a few
thousand images end before it has learned. So each kind of training has a minimum number of epochs and of
steps. With more images than these steps take, the batch grows before the number of steps does,
since large batches keep a GPU busy. docs/studies/defaults.md has the measurements behind the numbers.
"""

import math
from dataclasses import dataclass, replace

from beamclip.data.config import StreamConfig
from beamclip.training.config import OptimConfig


@dataclass(frozen=True)
class Recipe:
    """Defaults of one kind of training."""

    epochs: int
    """Minimum passes over the data."""
    steps: int
    """Minimum optimiser steps."""
    batch_size: int
    """Minimum images in a batch, if the data has that many."""
    largest_batch: int
    """Maximum images in a batch, unless LEAST_IN_A_SHARE asks for more; `batch_size` times a power of two."""
    lr: float
    """Peak learning rate."""


DISTILLATION = Recipe(epochs=10, steps=1200, batch_size=64, largest_batch=256, lr=2e-3)
PRETRAINING = Recipe(epochs=20, steps=600, batch_size=128, largest_batch=256, lr=1e-3)

LEAST_IN_A_SHARE = 16
"""Minimum images of a batch for each worker: batch norms estimate their statistics from them."""


def complete(
    recipe: Recipe, images: int, stream: StreamConfig, optim: OptimConfig, *, num_workers: int = 1
) -> tuple[StreamConfig, OptimConfig]:
    """Return the options with missing values chosen; given values stay.

    Args:
        images: number of images in all shards, > 0.
        num_workers: a chosen batch size is a multiple of it.
    """
    batch = stream.batch_size or _batch_size(recipe, images, num_workers)
    epochs = optim.epochs
    if not optim.has_length:
        epochs = float(max(recipe.epochs, math.ceil(recipe.steps * batch / images)))
    lr = recipe.lr if optim.lr is None else optim.lr
    return replace(stream, batch_size=batch), replace(optim, epochs=epochs, lr=lr)


def total_steps(config: OptimConfig, samples: int, batch_size: int) -> int:
    """Return the number of optimiser steps of a run, rounded up so that the last epoch is complete.

    Args:
        config: must have epochs, steps or samples; see `complete`.
        samples: number of samples in the data.
        batch_size: samples per step, over all workers.
    """
    if config.steps is not None:
        return config.steps
    if config.samples is not None:
        return math.ceil(config.samples / batch_size)
    assert config.epochs is not None
    return math.ceil(config.epochs * samples / batch_size)


def _batch_size(recipe: Recipe, images: int, num_workers: int) -> int:
    batch = recipe.batch_size
    while 2 * batch <= recipe.largest_batch and recipe.epochs * images >= recipe.steps * 2 * batch:
        batch *= 2
    batch = min(max(batch, LEAST_IN_A_SHARE * num_workers), images)
    return max(batch // num_workers, 1) * num_workers
