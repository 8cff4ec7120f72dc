"""One worker of a data-parallel training step; run as a program by test_method.py.

    python data_parallel_worker.py RANK WORLD_SIZE CONFIG FOLDER

Workers meet over a file in FOLDER. Rank 0 writes the gradients that its optimiser sees to
FOLDER/gradients.pt.
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.data.config import AugmentConfig
from beamclip.data.position import Position
from beamclip.data.stream import Batch
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.losses.config import CsmConfig, FeatureConfig, PsdConfig
from beamclip.models.clip import new_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import OptimConfig
from beamclip.training.loop import Training
from beamclip.training.method import Distillation, ImageTextPretraining

SAMPLES = 8
ANCHORS = 6
MILD = AugmentConfig(flip_prob=0.5, grey_prob=0.2)
EXACT = OptimConfig(lr=1e-3, clip_norm=0.0, precision="fp32")


def distillation(config: str) -> Distillation:
    """Return a ViT that learns from another ViT of the same config."""
    embeddings = torch.randn(ANCHORS, 16, generator=torch.Generator().manual_seed(2))
    return Distillation(
        new_clip(config, seed=1).image_tower,
        [Teacher(new_clip(config, seed=0)).encode_image],
        [Anchors(F.normalize(embeddings, dim=1), torch.arange(ANCHORS))],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2),
        feature=FeatureConfig(feature_weight=0.5),
        augmentation=MILD,
    )


def pretraining(config: str) -> ImageTextPretraining:
    """Return two towers of random weights under the CLIP loss."""
    return ImageTextPretraining(new_clip(config, seed=1), augmentation=MILD)


def sigmoid_pretraining(config: str) -> ImageTextPretraining:
    """Return two towers of random weights under the SigLIP loss."""
    clip = new_clip(config, seed=1, init_logit_scale=2.3, init_logit_bias=-10.0)
    return ImageTextPretraining(clip, augmentation=MILD, objective="siglip")


def self_distillation(target: str, config: str) -> ImageTextPretraining:
    """Return two towers of random weights under the PSD loss, with soft targets from the first step on."""
    psd = PsdConfig(psd_target=target, psd_warmup=0.0, psd_schedule="constant", psd_sharpness=2.0)
    return ImageTextPretraining(new_clip(config, seed=1), augmentation=MILD, objective="psd", psd=psd)


METHODS = {
    "distillation": distillation,
    "pretraining": pretraining,
    "siglip": sigmoid_pretraining,
    **{f"psd {target}": partial(self_distillation, target) for target in ("swap", "ema")},
}


def batch_of(start: int, stop: int) -> Batch:
    """Return samples [start, stop) of one fixed batch."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (SAMPLES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    draws = torch.rand(SAMPLES, AUGMENT_DRAWS, generator=generator)
    keys = [f"{i:04d}" for i in range(start, stop)]
    captions = [f"a photo of thing number {i}" for i in range(start, stop)]
    return Batch(
        pixels[start:stop],
        draws[start:stop],
        captions,
        keys,
        [0] * len(keys),
        Position(),
        weights=torch.ones(len(keys)),
        numbers=torch.arange(start, stop),
        global_size=SAMPLES,
        good=len(keys),
    )


def gradients_of_step(method: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """Return the gradients, by parameter name, that the optimiser sees in one step over micro-batches."""
    training = Training(method, EXACT, total_steps=10, device=torch.device("cpu"), seed=0)
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        named = training.bare.named_parameters()
        seen.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    training.optimizer.register_step_pre_hook(look)
    training.advance(batches)
    return seen


def main(rank: int, world_size: int, config: str, folder: Path) -> None:
    """Take one step with each method, with and without accumulation; rank 0 saves the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    share = SAMPLES // world_size
    first, middle, last = rank * share, rank * share + share // 2, (rank + 1) * share
    one, two = [batch_of(first, last)], [batch_of(first, middle), batch_of(middle, last)]
    gradients = {
        name: gradients_of_step(nn.parallel.DistributedDataParallel(build(config)), one)
        for name, build in METHODS.items()
    }
    for name, build in METHODS.items():
        wrapped = nn.parallel.DistributedDataParallel(build(config))
        gradients[f"accumulated {name}"] = gradients_of_step(wrapped, two)
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
