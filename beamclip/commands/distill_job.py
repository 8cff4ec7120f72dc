"""A distillation as its workers see it: the job made of its options, and the student in what they leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from beamclip.commands.options import DistillConfig
from beamclip.data.cache import CachedViews
from beamclip.data.shards import Columns, Shard
from beamclip.training.builders import DistillationBuilder
from beamclip.training.optim import total_steps
from beamclip.training.worker import Storage, TrainingJob


@dataclass(frozen=True)
class TrainingData:
    """What a distillation trains on."""

    shards: list[Shard]
    views: CachedViews | None
    """What to take from a teacher cache; None where the shards are plain ones."""
    size: int
    """Side of the pixels that reach the method."""

    @property
    def samples(self) -> int:
        """In all shards."""
        return sum(shard.samples for shard in self.shards)


def distillation_job(
    config: DistillConfig,
    images: TrainingData,
    *,
    teachers: Sequence[Any],
    student: Any,
    anchors: Any,
    storage: Storage,
) -> TrainingJob:
    """The job of a distillation.

    Args:
        config: with a batch size, epochs or steps, and a learning rate; see training.recipe.
        teachers, student, anchors: references; see DistillationBuilder.
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
            config.augmentation,
            config.optim.compile,
        ),
        shards=images.shards,
        columns=Columns(views=images.views),
        image_size=images.size,
        batch_size=batch_size,
        total_steps=total_steps(config.optim, images.samples, batch_size),
        seed=config.seed,
        threads=config.workers.threads_per_worker,
        stream=config.stream,
        augmentation=config.augmentation,
        optim=config.optim,
        cadence=config.cadence,
        storage=storage,
    )


def restore_student(visual: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put a distillation's weights into an image tower, and set it to eval mode.

    Args:
        weights: see loop.trained_weights.
    """
    visual.load_state_dict(
        {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}
    )
    visual.eval()
