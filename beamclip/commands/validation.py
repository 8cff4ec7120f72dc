"""Validation of a training, from its options to what scores the model on the workers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from beamclip.cluster.session import share
from beamclip.commands.class_list import label_ids
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.commands.templates import encoded_images
from beamclip.commands.validation_data import count_labelled, validated_on
from beamclip.evaluation.held_out import HeldOutRows, read_held_out
from beamclip.evaluation.validation import ClassTexts, ValidationSet
from beamclip.models.clip import ImageTower, LoadedClip
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.templates import resolve_templates
from beamclip.training.builders import ValidationBuilder
from beamclip.training.recipe import (
    ValidationCosts,
    complete_validation,
    total_steps,
    validation_share,
)

Training = TypeVar("Training", bound=DistillConfig | PretrainConfig)


def with_validation(
    config: Training,
    classes: Sequence[ClassEntry],
    samples: int,
    costs_of: Callable[[], ValidationCosts],
) -> Training:
    """Fill in how often and on how many images to validate, and print it; see `complete_validation`.

    Args:
        config: as returned by `batches.sized`.
        classes: to predict.
        samples: in the data that are trained on.
        costs_of: called if there are images to validate on.
    """
    address, batch_size = validated_on(config, classes), config.stream.batch_size
    assert batch_size is not None
    if address is None or config.validation.eval_every == 0:
        return config
    length = {"steps": total_steps(config.optim, samples, batch_size), "batch_size": batch_size}
    available = count_labelled(address, allow_missing=config.stream.allow_missing_shards)
    costs = costs_of()
    own = complete_validation(config.validation, costs, available=available, **length)
    if own.eval_every and own.val_images:
        text = (
            f"{plural(own.val_images, 'image')} of {address}, scored every {plural(own.eval_every, 'step')}"
        )
        print_stage("held out", text, f"{percent(validation_share(own, costs, **length))} of the arithmetic")
    else:
        print_stage("held out", "no score while training, which is too short for it (--eval-every N)")
    return replace(config, validation=own)


def distillation_costs(
    student: LoadedClip, teachers: Sequence[ImageTower], vision: Sequence[ImageTower], *, cached: bool
) -> ValidationCosts:
    """Return what validation takes in a distillation, in floating-point operations.

    Args:
        vision: towers of the teachers of vision only, which do not see the images to validate on.
        cached: whether the teachers' embeddings of the images that are trained on come from a cache.
    """
    of_student = _image_operations(student.image_tower)
    of_teachers = sum(map(_image_operations, teachers))
    # A backward pass takes twice the operations of a forward pass.
    sample = 3 * of_student + (0 if cached else of_teachers + sum(map(_image_operations, vision)))
    return ValidationCosts(sample=sample, image=of_student, once=of_teachers)


def pretraining_costs(
    clip: LoadedClip, classes: Sequence[ClassEntry], prompts: PromptConfig
) -> ValidationCosts:
    """Return what validation takes in a pre-training, in floating-point operations."""
    of_image = _image_operations(clip.image_tower)
    tokens = clip.tokenizer(["a text"])
    of_text = _operations(clip.model, lambda model: model.encode_text(tokens))
    contexts = prompts.num_contexts if prompts.context_source != "none" else 0
    texts = len(classes) * len(resolve_templates(prompts.templates)) * max(1, contexts)
    return ValidationCosts(sample=3 * (of_image + of_text), image=of_image + of_text, texts=texts * of_text)


def _image_operations(tower: ImageTower) -> int:
    size = tower.preprocessing.size
    return _operations(tower.network, lambda network: network(torch.zeros(1, 3, size, size)))


def _operations(network: nn.Module, run: Callable[[Any], object]) -> int:
    training = [module for module in network.modules() if module.training]
    network.eval()  # so that no batch norm takes zeros for images
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(network)
    for module in training:
        module.training = True
    return int(counter.get_total_flops())


def distillation_validation(
    config: DistillConfig,
    student: LoadedClip,
    classes: Sequence[ClassEntry],
    anchors: Anchors | None,
    teachers: Sequence[tuple[LoadedClip, ImageTower]],
) -> ValidationBuilder | None:
    """Read the images to validate on, and embed them by the teachers; None if nothing is validated.

    Args:
        config: as returned by `with_validation`.
        anchors: those of the classes.
        teachers: each with its image tower.

    Raises:
        InputError: see `read_held_out`.
    """
    if not config.validation.eval_every or anchors is None:
        return None
    rows = _read(config, student, classes)
    embeddings = [_embedded(rows, clip, tower, config) for clip, tower in teachers]
    held_out = ValidationSet(rows.images, rows.labels, anchors, len(classes), embeddings=tuple(embeddings))
    return _builder(config, held_out)


def pretraining_validation(
    config: PretrainConfig,
    clip: LoadedClip,
    prompts: list[list[str]],
    classes: Sequence[ClassEntry],
) -> ValidationBuilder | None:
    """Read the images to validate on, with their captions; None if nothing is validated.

    Args:
        config: as returned by `with_validation`.
        prompts: those of each class.

    Raises:
        InputError: see `read_held_out`.
    """
    if not config.validation.eval_every:
        return None
    rows = _read(config, clip, classes)
    captions = tuple(row["caption"] or "" for row in rows.rows)
    texts = ClassTexts(prompts, config.prompts.anchor_reduce)
    has_captions = any(captions)
    held_out = ValidationSet(
        rows.images, rows.labels, texts, len(classes), captions=captions if has_captions else ()
    )
    return _builder(config, held_out)


def _read(
    config: DistillConfig | PretrainConfig, clip: LoadedClip, classes: Sequence[ClassEntry]
) -> HeldOutRows:
    address, most = validated_on(config, classes), config.validation.val_images
    assert address is not None
    assert most is not None
    rows = read_held_out(
        address,
        label_ids(classes, address, config.scoring.label_column),
        config.scoring.label_column,
        most,
        clip,
        allow_missing=config.stream.allow_missing_shards,
    )
    if rows.skipped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(rows.skipped.items()))
        print_stage("held out", f"{plural(len(rows.rows), 'image')} of them usable: {reasons}")
    return rows


def _embedded(rows: HeldOutRows, clip: LoadedClip, tower: ImageTower, config: DistillConfig) -> Tensor:
    return encoded_images(tower, rows.pixels(clip), config.workers)


def _builder(config: DistillConfig | PretrainConfig, held_out: ValidationSet) -> ValidationBuilder:
    own, batch_size = config.validation, config.stream.batch_size
    assert own.eval_every
    assert batch_size
    return ValidationBuilder(
        share(held_out, config.workers),
        batch_size=batch_size,
        chunk_size=config.scoring.scoring_batch,
        every=own.eval_every,
        saves=own.export_checkpoint == "best",
    )
