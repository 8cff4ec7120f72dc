"""Callables that build a method on a worker, from models and anchors in the object store.

The model libraries are imported when a builder is called, not with this module: a worker starts to stream
its data first, and the import takes about as long as the first rows need to arrive.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from beamclip.cluster.session import fetch
from beamclip.data.config import Augmentation
from beamclip.losses.config import (
    BatchTermsConfig,
    CsmConfig,
    FeatureConfig,
    Objective,
    PsdConfig,
    VisionConfig,
)
from beamclip.training.loop import Validation
from beamclip.training.worker_group import WorkerGroup


@dataclass(frozen=True)
class DistillationBuilder:
    """Builds training.distillation.Distillation."""

    teachers: tuple[Any, ...]
    """References to ImageTowers (cluster.share), those of vision only last; empty if the batches carry the
    embeddings."""
    student: Any
    """Reference to an ImageTower."""
    anchors: Any
    """Reference to a list of Anchors, one for each teacher with a text tower."""
    teacher_precision: Literal["auto", "fp32", "bf16"]
    csm: CsmConfig
    feature: FeatureConfig
    terms: BatchTermsConfig
    vision: VisionConfig
    vision_widths: tuple[int, ...]
    """Widths of the features of the teachers of vision only."""
    augmentation: Augmentation
    compile: bool
    """Whether torch compiles the teachers."""
    seed: int
    text_tower: Any = None
    """Reference to the first teacher without its image tower, for terms that read captions; None if there is
    none, or if the batches carry the embeddings."""
    frozen_layers: int = 0

    def __call__(self, device: torch.device) -> nn.Module:
        """Build the method, with its teachers on `device` and everything else on the CPU."""
        from beamclip.models.teacher import ImageTeacher, Teacher
        from beamclip.training.distillation import Distillation
        from beamclip.training.optim import teacher_precision

        precision = teacher_precision(self.teacher_precision, device)
        teachers = [ImageTeacher(fetch(each), precision).to(device) for each in self.teachers]
        if self.compile:
            for teacher in teachers:
                teacher.compile_network()
        texts = Teacher(fetch(self.text_tower), copied=False).to(device) if self.text_tower else None
        return Distillation(
            fetch(self.student),
            [teacher.encode_image for teacher in teachers],
            fetch(self.anchors),
            csm=self.csm,
            feature=self.feature,
            augmentation=self.augmentation,
            terms=self.terms,
            vision=self.vision,
            vision_widths=self.vision_widths,
            seed=self.seed,
            embed_texts=texts.encode_text if texts else None,
            frozen_layers=self.frozen_layers,
        )


@dataclass(frozen=True)
class ValidationBuilder:
    """Builds what scores a method while it trains."""

    held_out: Any
    """Reference to a ValidationSet (cluster.share)."""
    batch_size: int
    """Samples that the loss compares with each other at most: a training batch."""
    chunk_size: int
    """Images or texts encoded at a time."""
    every: int
    """Steps between two validations."""
    saves: bool
    """Whether a checkpoint follows each."""

    def __call__(self, group: WorkerGroup) -> Validation:
        """Build it for one of a group of workers."""
        from beamclip.evaluation.validation import Scorer

        scorer = Scorer(
            fetch(self.held_out),
            group.device,
            batch_size=self.batch_size,
            chunk_size=self.chunk_size,
            rank=group.rank,
            world_size=group.world_size,
        )
        return Validation(scorer, self.every, self.saves)


@dataclass(frozen=True)
class PretrainingBuilder:
    """Builds training.pretraining.ImageTextPretraining."""

    clip: Any
    """Reference to the LoadedClip to train."""
    augmentation: Augmentation
    objective: Objective
    psd: PsdConfig
    seed: int
    frozen_layers: int = 0
    locked: tuple[Literal["image", "text"], ...] = ()

    def __call__(self, device: torch.device) -> nn.Module:
        """Build the method, on the CPU."""
        from beamclip.training.pretraining import ImageTextPretraining

        return ImageTextPretraining(
            fetch(self.clip),
            augmentation=self.augmentation,
            objective=self.objective,
            psd=self.psd,
            seed=self.seed,
            frozen_layers=self.frozen_layers,
            locked=self.locked,
        )
