"""Distil a student of a study: our method and training step, in this process, on images in memory."""

import torch
from support.emoji_pairs import Pairs, endless_batches

from beamclip.data.config import Augmentation, CaptionConfig
from beamclip.data.decoding import Decoding
from beamclip.data.worker_stream import prefetched
from beamclip.losses.config import CsmConfig, FeatureConfig
from beamclip.models.clip import LoadedClip
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors
from beamclip.training.config import OptimConfig
from beamclip.training.distillation import Distillation
from beamclip.training.loop import Training
from beamclip.training.recipe import total_steps


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
    method.to(memory_format=torch.channels_last).train()
    total = total_steps(optim, len(pairs.keys), batch_size)
    training = Training(method, optim, total_steps=total, device=torch.device("cpu"), seed=seed)
    decoding = Decoding(clip.image_size, augmentation, CaptionConfig(), seed)
    with prefetched(endless_batches(pairs, batch_size, decoding), 4) as batches:
        while training.step < total:
            training.advance([next(batches)])
    learner.model.eval()
    return Teacher(learner)
