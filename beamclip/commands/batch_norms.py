"""Refuse a training whose passes are too small for batch norms."""

from copy import deepcopy

import torch

from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip
from beamclip.training.frozen import freeze_layers


def check_batch_norms(config: DistillConfig | PretrainConfig, clip: LoadedClip) -> None:
    """Refuse passes of one image if they leave a batch norm one value per channel, which has no variance.

    Args:
        config: as returned by `sized`.

    Raises:
        InputError: torch refuses to train the image tower on one image.
    """
    if config.optim.sync_batch_norm and config.workers.least_workers > 1:
        return
    if isinstance(config, PretrainConfig) and config.lock_image:
        return
    batch, workers = config.stream.batch_size, config.workers.world_size
    too_small = batch is not None and batch <= workers
    if not too_small and config.optim.micro_batch != 1:
        return
    # The meta device takes no memory or arithmetic; torch itself says whether it would train.
    tower = deepcopy(clip.image_tower.network).to("meta").train()
    for name in freeze_layers(tower, config.optim.frozen_layers):
        tower.get_submodule(name).eval()
    try:
        tower(torch.empty(1, 3, clip.image_size, clip.image_size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        option, least = (f"--batch-size {batch}", 2 * workers) if too_small else ("--micro-batch 1", 2)
        raise InputError(
            f"{option}: one image at a time in each of {workers} workers leaves batch norms nothing to "
            f"average over. Give {least} or more{_alternative(config)}."
        ) from error


def _alternative(config: DistillConfig | PretrainConfig) -> str:
    return ", or --sync-batch-norm" if config.workers.use_gpu and config.workers.least_workers > 1 else ""
