"""Batches of one image a pass: refused where torch itself could not train on them."""

from dataclasses import replace

import pytest
import torch

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.batch_norms import check_batch_norms
from beamclip.commands.options import PretrainConfig
from beamclip.data.config import StreamConfig
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.training.config import OptimConfig


def refused(
    clip: LoadedClip,
    batch: int,
    workers: int | str = 1,
    micro_batch: int | None = None,
    *,
    gpu: bool = False,
    sync: bool = False,
) -> str | None:
    config = PretrainConfig(
        stream=StreamConfig(batch_size=batch),
        optim=OptimConfig(micro_batch=micro_batch, sync_batch_norm=sync),
        workers=WorkersConfig(num_workers=workers, use_gpu=gpu),
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


def test_what_is_refused_is_one_image_in_a_pass_of_a_worker() -> None:
    clip = new_clip("nano-resnet10t", seed=0)
    clip.preprocess_cfg["size"] = clip.model.visual.image_size = 32
    assert "--batch-size 4: one image at a time in each of 4 workers" in str(refused(clip, 4, 4))
    assert "Give 8 or more." in str(refused(clip, 4, 4))
    assert "--micro-batch 1: one image at a time" in str(refused(clip, 8, 1, 1))
    assert refused(clip, 8, 4, 2) is None


def test_batch_norms_of_several_workers_need_two_images_among_them() -> None:
    clip = new_clip("nano-resnet10t", seed=0)
    clip.preprocess_cfg["size"] = clip.model.visual.image_size = 32
    assert "Give 8 or more, or --sync-batch-norm." in str(refused(clip, 4, 4, gpu=True))
    assert "sync" not in str(refused(clip, 4, 4))
    assert refused(clip, 4, 4, gpu=True, sync=True) is None
    assert refused(clip, 8, 4, 1, gpu=True, sync=True) is None
    # A single worker that is left has nobody to average with.
    assert refused(clip, 8, "1..4", 1, gpu=True, sync=True) is not None


def test_a_locked_image_tower_has_statistics_of_its_own() -> None:
    clip = new_clip("nano-resnet10t", seed=0)
    clip.preprocess_cfg["size"] = clip.model.visual.image_size = 32
    one_a_pass = PretrainConfig(stream=StreamConfig(batch_size=1), workers=WorkersConfig(num_workers=1))
    with pytest.raises(InputError, match="one image at a time"):
        check_batch_norms(one_a_pass, clip)
    check_batch_norms(replace(one_a_pass, lock_image=True), clip)
