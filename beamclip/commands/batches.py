"""Length, learning rate and batches of a training: chosen where the user gave none, and always checked.

Free of torch: batches are checked before a model is loaded.
"""

from dataclasses import replace
from typing import TypeVar

from beamclip.commands.console import plural, print_stage
from beamclip.commands.options import DistillConfig, PretrainConfig, SweepConfig
from beamclip.data.mixture import mixture_of, source_counts
from beamclip.data.shards import Shard
from beamclip.errors import InputError
from beamclip.training.recipe import DISTILLATION, FINE_TUNING, PRETRAINING, Recipe, complete

TrainConfig = DistillConfig | PretrainConfig
AnyTrainConfig = TypeVar("AnyTrainConfig", DistillConfig, SweepConfig, PretrainConfig)


def _recipe(config: TrainConfig) -> Recipe:
    if not isinstance(config, PretrainConfig):
        return DISTILLATION
    return FINE_TUNING if config.init else PRETRAINING


def sized(config: AnyTrainConfig, shards: list[Shard]) -> AnyTrainConfig:
    """Fill in the batch size, epochs and learning rate that were not given; see training.recipe."""
    recipe = _recipe(config)
    images = sum(shard.samples for shard in shards)
    workers = config.workers.world_size
    stream, optim = complete(recipe, images, config.stream, config.optim, num_workers=workers)
    return replace(config, stream=stream, optim=optim)


def show_chosen(given: TrainConfig, config: TrainConfig, shards: list[Shard]) -> None:
    """Print one line on what `sized` chose and why; nothing if everything was given."""
    recipe = _recipe(config)
    chosen = []
    if given.stream.batch_size is None:
        chosen.append(f"batch {config.stream.batch_size}")
    if not given.optim.has_length:
        chosen.append(f"{config.optim.epochs:g} epochs")
    if given.optim.lr is None:
        chosen.append(f"lr {config.optim.lr:g}")
    if chosen:
        images = plural(sum(shard.samples for shard in shards), "image")
        why = f"at least {recipe.epochs} epochs and {recipe.steps:,} steps"
        print_stage("chosen", f"{', '.join(chosen)} for {images}", why)


def check_synchronisation(config: TrainConfig) -> None:
    """Refuse to synchronise batch norms on CPUs.

    Raises:
        InputError: it is asked for without GPUs.
    """
    if config.optim.sync_batch_norm and not config.workers.use_gpu:
        raise InputError(
            "--sync-batch-norm without --use-gpu: torch exchanges the statistics of batch norms between GPUs "
            "only. Give --use-gpu, or leave it out."
        )


def check_batches(config: TrainConfig, shards: list[Shard]) -> None:
    """Refuse batches with fewer samples than workers or more than the data hold, and too small a window.

    Args:
        config: as returned by `sized`.

    Raises:
        InputError: the batch is smaller than the number of workers, the data hold fewer samples, or the
            shuffle window has too few lanes for the workers, or for the weight of a data set.
    """
    batch, workers = config.stream.batch_size, config.workers.world_size
    assert batch is not None
    if batch < workers:
        raise InputError(
            f"--batch-size {batch}: leaves some of {workers} workers without a sample. "
            f"Give {workers} or more."
        )
    stream, counts = config.stream, source_counts(shards)
    samples = mixture_of(counts, stream.data_weights, stream.shuffle_window, config.seed, workers).rows
    if samples < batch:
        raise InputError(
            f"{' '.join(config.data)}: {plural(samples, 'sample')} cannot fill a batch of {batch}. "
            f"Give --batch-size {samples // workers * workers or workers} or less, or more data."
        )
