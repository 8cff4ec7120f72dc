"""Choose the templates of a command: the teacher's own by default. Warn if others seem to fit it better."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.commands.anchors import encoded_prompts
from beamclip.commands.console import plural, print_stage
from beamclip.data.captions import choose_caption
from beamclip.data.config import CaptionConfig
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.transforms import load_evaluation_image
from beamclip.evaluation.template_fit import information
from beamclip.models.clip import ImageTower, LoadedClip
from beamclip.models.teacher import ImageTeacher
from beamclip.prompts.class_prompts import class_prompts
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.fitting import UNKNOWN_TEMPLATES
from beamclip.prompts.templates import AUTO, TEMPLATE_SETS, resolve_templates

IMAGES, CLASSES = 256, 256
"""Images and classes that templates are compared on, at even distances: seconds, however large the data."""
COMPARED_SETS = (*TEMPLATE_SETS, "openai7")
_SHARDS, _PASSED = 16, 4
"""Most shards to take images from, and rows of a shard to pass for each image taken."""
_LEAST_GAIN, _LEAST_RATIO = 0.05, 1.05
"""Gain, in nats and as a factor, that other templates must reach before the user is warned."""

Embed = Callable[[], Tensor]
"""Returns [N, D] unit embeddings of some images by the model in question."""


@dataclass(frozen=True)
class Fit:
    """How well a set of templates fits a model."""

    templates: tuple[str, ...]
    nats: float
    """Mutual information of image and predicted class; see `evaluation.template_fit.information`."""

    @property
    def label(self) -> str:
        """The templates as they are given on the command line."""
        return " ".join(name if " " not in name else repr(name) for name in self.templates)


def with_templates(prompts: PromptConfig, clip: LoadedClip, of_data: Sequence[str] = ()) -> PromptConfig:
    """Replace the templates `auto` by those of the data or that fit the model, and print which these are.

    Args:
        of_data: templates that come with the labelled data; empty if none do.
    """
    if prompts.templates != (AUTO,):
        return prompts
    if of_data:
        print_stage("templates", f"{plural(len(of_data), 'template')} that come with the data", AUTO)
        return replace(prompts, templates=tuple(of_data))
    templates = own_templates(clip)
    reason = clip.fitting.reason if clip.fitting else "the text tower's training captions are unknown"
    print_stage("templates", f"{Fit(templates, 0.0).label}: {reason}", AUTO)
    return replace(prompts, templates=templates)


def own_templates(clip: LoadedClip) -> tuple[str, ...]:
    """Return the templates that `auto` stands for with this model."""
    return clip.fitting.templates if clip.fitting else UNKNOWN_TEMPLATES


def seen_captions(shards: list[Shard], columns: Columns, config: CaptionConfig) -> list[str]:
    """Return a few hundred captions as a text tower sees them in training."""
    rows = _some_rows(shards, columns)
    draws = ((place + 0.5) / len(rows) for place in range(len(rows)))
    return [choose_caption(row["texts"], draw, config) for row, draw in zip(rows, draws, strict=True)]


def warn_of_misfit(
    prompts: PromptConfig,
    classes: Sequence[ClassEntry],
    clip: LoadedClip,
    embed: Embed,
    workers: WorkersConfig,
    cache_dir: Path,
) -> None:
    """Print one line if other templates seem to fit the model better; skip this if they are known to fit.

    Args:
        clip: the model, whose text tower encodes the prompts.
        embed: called only if the templates are not known to fit.
        cache_dir: folder in which encoded prompts are kept.
    """
    if not _is_sure(prompts, clip):
        say_misfit(compare_templates(prompts, classes, clip, embed(), workers, cache_dir), clip)


def say_misfit(fits: list[Fit], clip: LoadedClip) -> None:
    """Print a warning if another set of templates fits much better than the first one in `fits`."""
    own, *others = fits
    best = max(others, key=lambda fit: fit.nats, default=own)
    if best.nats - own.nats >= _LEAST_GAIN and best.nats >= _LEAST_RATIO * own.nats:
        known = f" ({clip.fitting.reason})" if clip.fitting else ""
        print_stage(
            "warning",
            f"templates {own.label} seem to fit the model less well{known}: with them its predictions tell "
            f"{own.nats:.2f} nats about an image, with --templates {best.label} {best.nats:.2f}",
        )


def warn_of_other_teachers(prompts: PromptConfig, teachers: Sequence[LoadedClip]) -> None:
    """Warn of each teacher after the first that is known to have been trained on other captions."""
    for clip in teachers[1:]:
        if clip.fitting is not None and not _is_sure(prompts, clip):
            text = f"all teachers use the templates {Fit(prompts.templates, 0.0).label}"
            print_stage("warning", f"{text}; others fit {clip.address}: {clip.fitting.reason}")


def compare_templates(
    prompts: PromptConfig,
    classes: Sequence[ClassEntry],
    clip: LoadedClip,
    images: Tensor,
    workers: WorkersConfig,
    cache_dir: Path,
) -> list[Fit]:
    """Measure how well each set of templates fits with bare names: the configured set first, then all others.

    Args:
        images: [N, D] unit embeddings by the model; if there are none, only the configured set is returned.
        cache_dir: folder in which encoded prompts are kept.
    """
    if len(images) == 0:
        return [Fit(prompts.templates, 0.0)]
    some = [classes[place] for place in _evenly(len(classes), CLASSES)]
    own = clip.fitting.templates if clip.fitting else ()
    candidates: list[tuple[str, ...]] = [prompts.templates]
    for templates in (own, *((name,) for name in COMPARED_SETS)):
        if templates and not any(_same(templates, each) for each in candidates):
            candidates.append(templates)
    # In one call, since each call sets up an encoder.
    prompts_of = [class_prompts(some, PromptConfig(templates=templates)) for templates in candidates]
    anchors, _ = encoded_prompts([*chain(*prompts_of)], "mean", clip, workers, cache_dir)
    shown = images[_evenly(len(images), IMAGES)]
    scale = float(clip.model.logit_scale.detach().exp())
    return [
        Fit(templates, information(shown, means, scale))
        for templates, means in zip(candidates, anchors.embeddings.split(len(some)), strict=True)
    ]


def embedded_by(tower: ImageTower, shards: list[Shard], workers: WorkersConfig) -> Embed:
    """Return a function that embeds some images of plain shards, on a GPU with --use-gpu."""

    def embed() -> Tensor:
        pixels = _some_images(shards, tower.preprocessing.size)
        if len(pixels) == 0:
            return torch.zeros(0, 0)
        return encoded_images(tower, pixels, workers)

    return embed


def encoded_images(tower: ImageTower, pixels: Tensor, workers: WorkersConfig) -> Tensor:
    """Encode images, uint8 [N, 3, H, H], on a GPU with --use-gpu.

    Returns:
        float32 [N, D] of unit length, on the CPU.
    """
    if workers.without_ray or not workers.use_gpu:
        # A copy: a teacher changes its network's memory format.
        return _encode(deepcopy(tower), pixels, "cuda" if workers.use_gpu else "cpu")
    import ray

    remote: Any = ray.remote(num_gpus=workers.worker_gpus, num_cpus=0)(_encode)
    encoded: Tensor = ray.get(remote.remote(tower, pixels, "cuda"))
    return encoded


def kept_in(shards: list[Shard]) -> Embed:
    """Return a function that reads embeddings of some images by the first teacher from teacher caches."""

    def embed() -> Tensor:
        kept = [row["embeddings"][0] for row in _some_rows(shards, Columns())]
        vectors = [torch.frombuffer(bytearray(each), dtype=torch.float16).float() for each in kept if each]
        return torch.stack(vectors) if vectors else torch.zeros(0, 0)

    return embed


def _encode(tower: ImageTower, pixels: Tensor, device: str) -> Tensor:
    teacher = ImageTeacher(tower).to(device)
    return torch.cat([teacher.encode_image(batch.to(device)).cpu() for batch in pixels.split(64)])


def _some_images(shards: list[Shard], size: int) -> Tensor:
    """Decode some images: uint8 [N, 3, size, size]."""
    images = []
    for row in _some_rows(shards, Columns()):
        try:
            images.append(load_evaluation_image(row["image"], size))
        except Exception:  # training counts and reports it
            continue
    stacked = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _some_rows(shards: list[Shard], columns: Columns) -> list[dict[str, Any]]:
    """Usable rows of a few shards, from the start of each: shards are read forwards, and may be remote."""
    chosen = [shards[place] for place in _evenly(len(shards), _SHARDS)]
    rows = []
    for shard in chosen:
        number = -(-IMAGES // len(chosen))
        asked = _evenly(min(shard.samples, _PASSED * number), number)
        rows += [row for row in iterate_rows(shard, columns, np.array(asked)) if not row["problem"]]
    return rows[:IMAGES]


def _evenly(total: int, most: int) -> list[int]:
    """At most `most` numbers of `range(total)`, at even distances."""
    number = min(total, most)
    return [total * (2 * place + 1) // (2 * number) for place in range(number)]


def _is_sure(prompts: PromptConfig, clip: LoadedClip) -> bool:
    """Whether the templates are among those that fit the captions that the model was trained on."""
    if clip.fitting is None:
        return False
    return set(resolve_templates(prompts.templates)) <= set(resolve_templates(clip.fitting.templates))


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    return set(resolve_templates(one)) == set(resolve_templates(other))
