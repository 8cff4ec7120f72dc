"""What contexts do to the anchors of classes, as a picture and a report show it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.anchors import encoded_prompts
from beamclip.evaluation.anchor_spread import class_means, closest_pairs, nearest
from beamclip.models.clip import LoadedClip
from beamclip.plots.contexts import ContextEffect, MovedPair
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig

PAIRS = 12
"""Closest pairs of bare names in the picture of a distillation."""


def class_labels(classes: Sequence[ClassEntry]) -> list[str]:
    """Return the name of each class, with its id if another class has the same name."""
    seen: dict[str, int] = {}
    for entry in classes:
        seen[entry.name] = seen.get(entry.name, 0) + 1
    return [f"{entry.name} ({entry.id})" if seen[entry.name] > 1 else entry.name for entry in classes]


def context_effect(
    classes: Sequence[ClassEntry],
    config: PromptConfig,
    means: tuple[Tensor, Tensor],
    pairs: Sequence[tuple[int, int]],
) -> ContextEffect:
    """Compare anchors of bare names with those in contexts.

    Args:
        config: names the contexts.
        means: float32 [K, D] each, unit mean of each class's anchors: of bare names, and with contexts.
        pairs: index pairs of classes to show.
    """
    labels = class_labels(classes)
    bare, chosen = means
    return ContextEffect(
        f"{config.num_contexts} from {config.context_source}",
        tuple(
            MovedPair(labels[a], labels[b], float(bare[a] @ bare[b]), float(chosen[a] @ chosen[b]))
            for a, b in pairs
        ),
        tuple(nearest(bare).tolist()),
        tuple(nearest(chosen).tolist()),
    )


def effect_on_anchors(
    classes: list[ClassEntry], config: PromptConfig, anchors: Anchors, teacher: LoadedClip, cache: Path
) -> ContextEffect:
    """Compare the anchors that a run trained on with those of the bare names, which are encoded for it.

    Args:
        anchors: of the classes, with contexts.
        cache: folder in which encoded prompts are kept.
    """
    prompts = class_prompts(classes, replace(config, num_contexts=0), {})
    bare, _ = encoded_prompts(prompts, config.anchor_reduce, teacher, WorkersConfig(num_workers=0), cache)
    means = class_means(bare, len(classes)), class_means(anchors, len(classes))
    return context_effect(classes, config, means, closest_pairs(means[0], PAIRS))
