"""Make the job that the workers of a distillation train, and restore the student from their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from beamclip.commands.options import DistillConfig
from beamclip.data.shards import Columns, Shard
from beamclip.training.builders import DistillationBuilder, ValidationBuilder
from beamclip.training.recipe import total_steps
from beamclip.training.worker import Storage, TrainingJob


@dataclass(frozen=True)
class TrainingData:
    """What a distillation trains on."""

    shards: list[Shard]
    """The shards of all data sets, one data set after the other; those of teacher caches say what is read."""
    size: int
    """Side of the images that reach the method, pixels."""

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)


def distillation_job(
    config: DistillConfig,
    images: TrainingData,
    *,
    teachers: Sequence[Any],
    student: Any,
    anchors: Any,
    text_tower: Any = None,
    vision_widths: Sequence[int] = (),
    storage: Storage,
    validation: ValidationBuilder | None = None,
) -> TrainingJob:
    """Make the training job of a distillation.

    Args:
        config: with batch size, length and learning rate filled in, as by `batches.sized`.
        teachers, student, anchors, text_tower, vision_widths: see DistillationBuilder.
        validation: what scores the student meanwhile.
    """
    batch_size = config.stream.batch_size
    assert batch_size is not None
    return TrainingJob(
        build_method=DistillationBuilder(
            tuple(teachers),
            student,
            anchors,
            config.teacher_precision,
            config.csm,
            config.feature,
            config.terms,
            config.vision,
            tuple(vision_widths),
            config.augmentation.chosen(),
            config.optim.compile,
            config.seed,
            text_tower,
            config.optim.frozen_layers,
        ),
        shards=images.shards,
        columns=Columns(caption=config.terms.read_captions),
        image_size=images.size,
        batch_size=batch_size,
        total_steps=total_steps(config.optim, images.samples, batch_size),
        seed=config.seed,
        threads=config.workers.threads_per_worker,
        stream=config.stream,
        augmentation=config.augmentation.chosen(),
        optim=config.optim,
        cadence=config.cadence,
        storage=storage,
        build_validation=validation,
    )


def restore_student(visual: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load the weights of a distillation into an image tower, and set it to eval mode.

    Args:
        weights: as returned by loop.trained_weights.
    """
    visual.load_state_dict(
        {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}
    )
    visual.eval()
