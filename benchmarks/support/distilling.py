"""Distil a student of a study: our method and training step, in this process, on images in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from support.emoji_pairs import Pairs, endless_batches
from support.view_pool import ViewPool, pool_batches

from beamclip.data.batch import Batch
from beamclip.data.config import PRESETS, Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.worker_stream import prefetched
from beamclip.losses.config import BatchTermsConfig, CsmConfig, FeatureConfig
from beamclip.models.clip import LoadedClip
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import Training
from beamclip.training.recipe import total_steps


@dataclass(frozen=True)
class Losses:
    """Terms of a distillation's loss; all but CSM are off by default."""

    csm: CsmConfig = field(default_factory=CsmConfig)
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    terms: BatchTermsConfig = field(default_factory=BatchTermsConfig)


def distilled(
    clip: LoadedClip,
    anchors: Anchors,
    pairs: Pairs,
    *,
    student: str,
    csm: CsmConfig,
    optim: OptimConfig,
    batch_size: int,
    seed: int,
) -> Teacher:
    """Distil a student from `clip`, on the images alone, with these anchors; return it ready to be scored."""
    teacher = Teacher(clip)
    learner = build_student(StudentConfig(student=student), clip, seed)
    augmentation = Augmentation()
    method = Distillation(
        learner.image_tower,
        [teacher.encode_image],
        [anchors],
        csm=csm,
        feature=FeatureConfig(),
        augmentation=augmentation,
    )
    decoding = Decoding(clip.image_size, augmentation, CaptionConfig(), seed)
    with prefetched(endless_batches(pairs, batch_size, decoding), 4) as batches:
        _train(method, optim, total_steps(optim, len(pairs.keys), batch_size), batches, seed)
    learner.model.eval()
    return Teacher(learner)


def distilled_from_pool(
    clip: LoadedClip,
    anchors: Anchors,
    pool: ViewPool,
    *,
    student: StudentConfig,
    losses: Losses,
    optim: OptimConfig,
    batch_size: int,
    seed: int,
) -> Teacher:
    """Distil a student from the embeddings of a pool that `clip` made; return it ready to be scored."""
    learner = build_student(student, clip, seed)
    method = Distillation(
        learner.image_tower,
        (),
        [anchors],
        csm=losses.csm,
        feature=losses.feature,
        terms=losses.terms,
        augmentation=PRESETS["none"],
    )
    total = total_steps(optim, pool.images.shape[1], batch_size)
    _train(method, optim, total, pool_batches(pool, batch_size, seed), seed)
    learner.model.eval()
    return Teacher(learner)


def _train(method: Distillation, optim: OptimConfig, total: int, batches: Iterator[Batch], seed: int) -> None:
    method.to(memory_format=torch.channels_last).train()
    training = Training(method, optim, total_steps=total, device=torch.device("cpu"), seed=seed)
    while training.step < total:
        training.advance([next(batches)])
