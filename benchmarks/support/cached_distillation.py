"""The parts of a distillation from cached embeddings, at random: what is learned does not matter here."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from beamclip.data.batch import Batch
from beamclip.data.cache import CachedViews
from beamclip.data.config import Augmentation
from beamclip.data.shards import Shard
from beamclip.data.transforms import AUGMENT_DRAWS
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.losses.config import BatchTermsConfig, CsmConfig, FeatureConfig
from beamclip.models.clip import load_clip, new_clip
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.prompts.anchors import Anchors
from beamclip.training.distillation import Distillation

STUDENT = "resnet18"
EMBED_DIM = 512
VIEWS = 4
ANCHORS = 1000


def write_teacher(image_size: int, folder: Path) -> None:
    """Write a teacher that costs next to nothing; its embeddings do not matter here."""
    config = {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "image_size": image_size,
            "patch_size": 32,
            "width": 64,
            "head_width": 32,
            "layers": 1,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "teacher.json")
        file.write_text(json.dumps(config))
        write_open_clip_dir(new_clip(file, seed=0), folder)


def write_classes(file: Path) -> Path:
    """Write the names of as many classes as there are anchors; return the file."""
    file.write_text("".join(f"thing number {number}\n" for number in range(ANCHORS)))
    return file


def distillation(
    teacher: Path,
    *,
    feature: FeatureConfig | None = None,
    terms: BatchTermsConfig | None = None,
    augmentation: Augmentation | None = None,
) -> Distillation:
    """Build the method as a worker does for a cache (see training.builders and training.worker).

    Args:
        teacher: folder that `write_teacher` wrote.
        feature, terms, augmentation: None for the defaults.
    """
    student = build_student(StudentConfig(student=STUDENT), load_clip(str(teacher)), seed=0)
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(ANCHORS, EMBED_DIM, generator=generator), dim=-1)
    method = Distillation(
        student.image_tower,
        (),
        [Anchors(points, torch.arange(ANCHORS))],
        csm=CsmConfig(),
        feature=feature or FeatureConfig(),
        terms=terms,
        augmentation=augmentation or Augmentation(),
    )
    method.to(memory_format=torch.channels_last).train()
    return method


def random_batch(count: int, size: int) -> Batch:
    """Make a batch like those from a cache: `count` images of `size` x `size` pixels."""
    generator = torch.Generator().manual_seed(0)
    names = [str(number) for number in range(count)]
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return Batch(
        pixels=pixels.contiguous(memory_format=torch.channels_last),
        draws=torch.rand(count, AUGMENT_DRAWS, generator=generator),
        captions=names,
        weights=torch.ones(count),
        numbers=torch.arange(count),
        global_size=count,
        good=count,
        keys=names,
        epochs=[0] * count,
        embeddings=(F.normalize(torch.randn(count, EMBED_DIM, generator=generator), dim=-1).half(),),
    )


def with_views(shard: Shard) -> Shard:
    """Return a shard of a cache as a run on one of its teachers reads it."""
    return replace(shard, views=CachedViews((0,), VIEWS))
