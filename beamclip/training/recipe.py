"""Choose the batch size, epochs and learning rate that are not given, from the number of images.

A student or a small CLIP model needs a certain number of steps rather than of epochs: ten epochs of a few
thousand images end before it has learned. So each kind of training has a minimum number of epochs and of
steps. With more images than these steps take, the batch grows before the number of steps does,
since large batches keep a GPU busy. docs/studies/defaults.md has the measurements behind the numbers.
"""

import math
from dataclasses import dataclass, replace

from beamclip.data.config import StreamConfig
from beamclip.training.config import WEIGHT_DECAY, OptimConfig, ValidationConfig


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
FINE_TUNING = Recipe(epochs=10, steps=600, batch_size=128, largest_batch=256, lr=3e-5)
"""A pre-training from the weights of another model. Epochs and learning rate are those of WiSE-FT (arXiv
2109.01903), not measured here: a rate of PRETRAINING would undo the weights."""

LEAST_IN_A_SHARE = 16
"""Minimum images of a batch for each worker: batch norms estimate their statistics from them."""

VALIDATION_SHARE = 0.008
"""Share of a training's arithmetic that validation takes by default, at most."""
LEAST_VALIDATIONS, MOST_VALIDATIONS = 3, 40
"""Fewer are no curve, and more show nothing new."""
TRAINED_FOR_EACH = 400
"""Images trained on, in all epochs, for each image to validate on."""
LEAST_IMAGES, MOST_IMAGES = 100, 2000
"""Images to validate on: a score has a standard error of 5 and of 1 % at most."""


@dataclass(frozen=True)
class ValidationCosts:
    """Arithmetic of validation, in any unit."""

    sample: float
    """Operations of training on one sample."""
    image: float
    """Operations on each image in each validation."""
    texts: float = 0.0
    """Operations on all class prompts in each validation."""
    once: float = 0.0
    """Operations on each image once, before the training."""


def complete_validation(
    config: ValidationConfig, costs: ValidationCosts, *, steps: int, batch_size: int, available: int
) -> ValidationConfig:
    """Return the options with the missing interval and number of images chosen; given values stay.

    Where data to validate on or the choice of the best checkpoint are asked for, there are LEAST_VALIDATIONS
    whatever they take.

    Args:
        steps, batch_size: of the training.
        available: images that could be validated on.

    Returns:
        The options as they are if there is no image, or no time for LEAST_VALIDATIONS: an interval that is
        None or 0 is no validation.
    """
    if not available:
        return config
    samples = steps * batch_size
    wanted = config.val_images or min(max(samples // TRAINED_FOR_EACH, LEAST_IMAGES), MOST_IMAGES)
    images = min(wanted, available)
    every = config.eval_every
    if every is None:
        left = VALIDATION_SHARE * samples * costs.sample - images * costs.once
        number = min(int(left / (images * costs.image + costs.texts)), MOST_VALIDATIONS, steps)
        if number < LEAST_VALIDATIONS:
            if config.val_data is None and config.export_checkpoint != "best":
                return config
            number = LEAST_VALIDATIONS
        every = math.ceil(steps / number)
    return replace(config, eval_every=every, val_images=images)


def validation_share(
    config: ValidationConfig, costs: ValidationCosts, *, steps: int, batch_size: int
) -> float:
    """Return the share of a training's arithmetic that its validations take.

    Args:
        config: as returned by `complete_validation`, with an interval above 0.
    """
    assert config.eval_every
    assert config.val_images
    number = math.ceil(steps / config.eval_every)
    work = number * (config.val_images * costs.image + costs.texts) + config.val_images * costs.once
    return work / (steps * batch_size * costs.sample)


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
    decay = WEIGHT_DECAY[optim.optimizer] if optim.weight_decay is None else optim.weight_decay
    return replace(stream, batch_size=batch), replace(optim, epochs=epochs, lr=lr, weight_decay=decay)


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
