"""One worker of a data-parallel training step; run as a program by test_method.py.

    python data_parallel_worker.py RANK WORLD_SIZE CONFIG FOLDER

Workers meet over a file in FOLDER. Rank 0 writes the gradients that its optimiser sees to
FOLDER/gradients.pt; each rank writes the weights after steps with few good samples to FOLDER/few.RANK.pt, and
what validation gave it to FOLDER/scores.RANK.json.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.data.batch import Batch
from beamclip.data.config import Augmentation
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.evaluation.validation import ClassTexts, Scorer, ValidationSet
from beamclip.losses.config import BatchTermsConfig, CsmConfig, FeatureConfig, PsdConfig, VisionConfig
from beamclip.models.clip import new_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.average import evaluated
from beamclip.training.config import OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import Training, Validation
from beamclip.training.pretraining import ImageTextPretraining

SAMPLES = 8
UNUSABLE = (2, 5)
"""Samples that do not count where the batch is dealt out."""
ANCHORS = 6
MILD = Augmentation(flip_prob=0.5, grey_prob=0.2)
EXACT = OptimConfig(lr=1e-3, clip_norm=0.0, precision="fp32")


def distillation(config: str, terms: BatchTermsConfig | None = None) -> Distillation:
    """Return a ViT that learns from another ViT of the same config."""
    teacher = Teacher(new_clip(config, seed=0))
    embeddings = torch.randn(ANCHORS, 16, generator=torch.Generator().manual_seed(2))
    return Distillation(
        new_clip(config, seed=1).image_tower,
        [teacher.encode_image],
        [Anchors(F.normalize(embeddings, dim=1), torch.arange(ANCHORS))],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2),
        feature=FeatureConfig(feature_weight=0.5),
        augmentation=MILD,
        terms=terms,
        embed_texts=teacher.encode_text,
    )


def vision_distillation(config: str) -> Distillation:
    """Return a ViT whose features learn from two others beside the teacher, which has the text tower."""
    towers = [Teacher(new_clip(config, seed=seed)) for seed in (0, 5, 6)]
    embeddings = torch.randn(ANCHORS, 16, generator=torch.Generator().manual_seed(2))
    return Distillation(
        new_clip(config, seed=1).image_tower,
        [tower.encode_image for tower in towers],
        [Anchors(F.normalize(embeddings, dim=1), torch.arange(ANCHORS))],
        csm=CsmConfig(tau_teacher=0.1, tau_student=0.2),
        feature=FeatureConfig(),
        augmentation=MILD,
        vision=VisionConfig(vision_relation_weight=0.5, vision_tau=0.1, vision_feature_weight=0.6),
        vision_widths=(16, 16),
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
    "distillation terms": partial(distillation, terms=BatchTermsConfig(0.5, 0.6, 0.7, 0.8)),
    "distillation vision": vision_distillation,
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
        keys=keys,
        epochs=[0] * len(keys),
        weights=torch.ones(len(keys)),
        numbers=torch.arange(start, stop),
        global_size=SAMPLES,
        good=len(keys),
    )


def dealt(rank: int, world_size: int, part: int) -> Batch:
    """Return a micro-batch, one of two: padding, and samples whose number % world_size is the rank."""
    numbers = torch.arange(rank, SAMPLES, world_size).chunk(2)[part]
    return rows_of([SAMPLES, *numbers.tolist()])


def rows_of(numbers: list[int], unusable: tuple[int, ...] = UNUSABLE) -> Batch:
    """Return samples of the fixed batch by number; SAMPLES stands for padding."""
    whole, rows = batch_of(0, SAMPLES), [number % SAMPLES for number in numbers]
    good = [number != SAMPLES and number not in unusable for number in numbers]
    return replace(
        whole,
        pixels=whole.pixels[rows],
        draws=whole.draws[rows],
        captions=[whole.captions[row] for row in rows],
        keys=[whole.keys[row] for row in rows],
        epochs=[0] * len(rows),
        weights=torch.tensor(good).float(),
        numbers=torch.tensor(numbers),
        good=sum(good),
    )


def weights_after_few_good_samples(rank: int) -> list[Tensor]:
    """Return a layer's weights before and after a step without a good sample, and after one with.

    The good sample of the last step is on rank 0.
    """
    method = nn.parallel.DistributedDataParallel(Layer())
    training = Training(method, EXACT, total_steps=10, device=torch.device("cpu"), seed=0)
    weights = [method.module.linear.weight.detach().clone()]
    for numbers in ([SAMPLES, UNUSABLE[0]], [SAMPLES, 0] if rank == 0 else [SAMPLES, UNUSABLE[0]]):
        training.advance([rows_of(numbers)])
        weights.append(method.module.linear.weight.detach().clone())
    return weights


class Layer(nn.Module):
    """A linear function of the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.linear.weight, 0.5)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the function's values."""
        return batch.weights @ self.linear(batch.pixels.float().mean(dim=(2, 3)))[:, 0], {}


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


HELD_OUT = 7
"""Images to validate on: an odd number, so that two workers have padding."""


def validation_set(name: str) -> ValidationSet:
    """Return random images of three classes, the last one without a caption."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (HELD_OUT, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0]).numpy()
    units = F.normalize(torch.randn(HELD_OUT + 3, 16, generator=generator), dim=1)
    if name.startswith("distillation"):
        anchors = Anchors(units[:3], torch.arange(3))
        return ValidationSet(images, labels, anchors, 3, embeddings=(units[3:],))
    texts = ClassTexts([["a crab", "crab"], ["an arrow"], ["a heart"]], "mean")
    captions = tuple(f"thing number {number}" for number in range(HELD_OUT - 1))
    return ValidationSet(images, labels, texts, 3, captions=(*captions, ""))


def scores_of(name: str, config: str, rank: int, world_size: int) -> dict[str, float]:
    """Return what validation gives one of a group of workers, in batches of at most four images."""
    method = METHODS[name](config).train()
    training = Training(method, EXACT, total_steps=10, device=torch.device("cpu"), seed=0)
    scorer = Scorer(
        validation_set(name),
        training.device,
        batch_size=4,
        chunk_size=3,
        rank=rank,
        world_size=world_size,
    )
    scores = training.validated(Validation(scorer, every=1))
    return {key: value for key, value in scores.items() if key.startswith("val_")}


def mean_in_validation(rank: int) -> float:
    """Return the running mean that a batch norm has in validation, if each rank's is its own number."""
    method = nn.BatchNorm2d(1)
    method.running_mean.fill_(float(rank))
    with evaluated(method, None):
        return float(method.running_mean)


def main(rank: int, world_size: int, config: str, folder: Path) -> None:
    """Take one step with each method, with and without accumulation; rank 0 saves the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    share = SAMPLES // world_size
    first, middle, last = rank * share, rank * share + share // 2, (rank + 1) * share
    kinds = {
        "": [batch_of(first, last)],
        "accumulated ": [batch_of(first, middle), batch_of(middle, last)],
        "dealt ": [dealt(rank, world_size, part) for part in range(2)],
    }
    gradients = {
        kind + name: gradients_of_step(nn.parallel.DistributedDataParallel(build(config)), batches)
        for kind, batches in kinds.items()
        for name, build in METHODS.items()
    }
    torch.save(weights_after_few_good_samples(rank), folder / f"few.{rank}.pt")
    scores = {name: scores_of(name, config, rank, world_size) for name in METHODS}
    found = {**scores, "running mean": mean_in_validation(rank)}
    (folder / f"scores.{rank}.json").write_text(json.dumps(found))
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
