"""Batches of one image a pass: refused where torch itself could not train on them."""

import pytest
import torch

from beamclip.cluster import WorkersConfig
from beamclip.commands.batch_norms import check_batch_norms
from beamclip.commands.options import PretrainConfig
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.training.config import OptimConfig


def refused(clip: LoadedClip, batch: int, workers: int = 1, accumulation: int = 1) -> str | None:
    config = PretrainConfig(
        stream=StreamConfig(batch_size=batch),
        optim=OptimConfig(accumulation=accumulation),
        workers=WorkersConfig(num_workers=workers),
    )
    try:
        check_batch_norms(config, clip)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
def test_one_image_a_pass_is_refused_exactly_where_torch_cannot_train_on_it(size: int) -> None:
    clip = new_clip("nano-resnet10t", seed=0)
    clip.model.visual.image_size = size
    clip.preprocess_cfg["size"] = size
    said = refused(clip, 1)
    try:
        clip.model.train().visual(torch.rand(1, 3, size, size))
        trains = True
    except ValueError:
        trains = False
    assert trains == (said is None)


def test_the_passes_of_all_workers_are_counted() -> None:
    clip = new_clip("nano-resnet10t", seed=0)
    clip.preprocess_cfg["size"] = clip.model.visual.image_size = 32
    assert "--batch-size 4: one image in each of the 4 passes" in str(refused(clip, 4, 2, 2))
    assert "Give 8 or more." in str(refused(clip, 4, 2, 2))
    assert refused(clip, 8, 2, 2) is None
