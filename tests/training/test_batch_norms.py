"""Batch norms that average over all workers: what the conversion keeps, and when it happens."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from beamclip.commands.main import main
from beamclip.data.config import Augmentation
from beamclip.data.mixture import Mixture
from beamclip.data.order import Order
from beamclip.data.shards import Shard
from beamclip.data.worker_stream import WorkerShare
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.training.batch_norms import synchronised
from beamclip.training.config import OptimConfig
from beamclip.training.pretraining import ImageTextPretraining
from beamclip.training.worker import _training
from beamclip.training.worker_group import single_process


def norms(network: nn.Module) -> list[nn.Module]:
    return [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def towers(tiny_config: Path) -> list[LoadedClip]:
    """With plain batch norms, with timm's that hold the activation, and MS-CLIP-S."""
    teacher = new_clip(tiny_config, seed=0)
    students = [StudentConfig(student=name) for name in ("test_resnet", "test_efficientnet")]
    return [*(build_student(config, teacher, seed=0) for config in students), new_clip("tiny-msclip-s", 0)]


def test_every_batch_norm_is_converted_and_tensors_and_function_stay(tiny_config: Path) -> None:
    for clip in towers(tiny_config):
        images = torch.randn(4, 3, clip.image_size, clip.image_size)
        plain = clip.model.visual.train()
        method = nn.ModuleDict({"visual": deepcopy(plain)})
        before = {name: tensor.data_ptr() for name, tensor in method.state_dict().items()}
        after = synchronised(method)
        assert {name: tensor.data_ptr() for name, tensor in after.state_dict().items()} == before
        assert norms(after)
        assert all(isinstance(part, nn.SyncBatchNorm) and part.training for part in norms(after))
        # In a single process they compute, and learn statistics, as ordinary batch norms do.
        torch.testing.assert_close(after["visual"](images), plain(images))
        plain.load_state_dict(after["visual"].state_dict())
        torch.testing.assert_close(after.eval()["visual"](images), plain.eval()(images))


@pytest.mark.parametrize(("workers", "asked"), [(1, True), (2, True), (2, False)])
def test_they_are_converted_for_several_workers_if_that_is_asked(workers: int, asked: bool) -> None:
    def build(_: torch.device) -> nn.Module:
        return ImageTextPretraining(new_clip("nano-resnet10t", 0), augmentation=Augmentation())

    optim = OptimConfig(steps=1, lr=1e-3, sync_batch_norm=asked)
    job = SimpleNamespace(build_method=build, optim=optim, total_steps=1, seed=0)
    group = replace(single_process(use_gpu=False), world_size=workers)
    training = _training(job, group)  # type: ignore[arg-type]
    converted = [isinstance(part, nn.SyncBatchNorm) for part in norms(training.bare)]
    assert converted == [asked and workers > 1] * len(converted)
    # The optimiser has the parameters that the converted network computes with.
    assert {id(p) for group in training.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in training.bare.parameters()
    }


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_all_workers_make_equally_many_passes_of_equal_size_in_each_step(
    workers: int, micro_batch: int | None
) -> None:
    # Two data sets, batches and windows that do not divide by each other: shares differ, and some are empty.
    orders = (Order(np.array([41, 9]), 7, 3, 0), Order(np.array([23]), 4, 2, 1))
    mixture = Mixture(orders)
    shares = [WorkerShare(mixture, 7, rank, workers, micro_batch) for rank in range(workers)]
    steps = [[share.of_step(step) for share in shares] for step in range(60)]
    assert len({own for step in steps for own, _, _ in step}) > 1
    for step in steps:
        assert sum(own for own, _, _ in step) == 7
        assert len({(passes, size) for _, passes, size in step}) == 1


def test_cpus_are_refused(shards: list[Shard], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(shards[0].path).parent)
    assert main(["pretrain", "--data", folder, "--num-workers", "0", "--sync-batch-norm"]) == 2
    assert "error: --sync-batch-norm without --use-gpu: torch exchanges" in capsys.readouterr().err
