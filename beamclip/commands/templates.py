"""Which templates a command uses: the teacher's own, and a warning where others seem to fit it better."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beamclip.cluster import WorkersConfig
from beamclip.commands.anchors import encoded_prompts
from beamclip.commands.console import print_stage
from beamclip.data.cache import CachedViews
from beamclip.data.captions import choose_caption
from beamclip.data.config import CaptionConfig
from beamclip.data.shards import Columns, Shard, iterate_rows
from beamclip.data.transforms import load_evaluation_image
from beamclip.evaluation.template_fit import information
from beamclip.models.clip import ImageTower, LoadedClip
from beamclip.models.teacher import ImageTeacher
from beamclip.prompts.anchors import class_prompts
from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.fitting import UNKNOWN_TEMPLATES
from beamclip.prompts.templates import AUTO, TEMPLATE_SETS, resolve_templates

IMAGES, CLASSES = 256, 256
"""That templates are compared on, at even distances: the comparison costs seconds, whatever the data."""
COMPARED_SETS = (*TEMPLATE_SETS, "openai7")
_SHARDS, _PASSED = 16, 4
"""Shards that images are taken of, and rows that are read for each that is taken."""
_LEAST_GAIN, _LEAST_RATIO = 0.05, 1.05
"""In nats, and as a factor: what other templates must add before a word is said about it."""

Embed = Callable[[], Tensor]
"""-> [N, D] unit embeddings of some images by the model in question."""


@dataclass(frozen=True)
class Fit:
    """How well a set of templates fits."""

    templates: tuple[str, ...]
    nats: float
    """See `evaluation.template_fit.information`."""

    @property
    def label(self) -> str:
        """As it is given on the command line."""
        return " ".join(name if " " not in name else repr(name) for name in self.templates)


def with_templates(prompts: PromptConfig, clip: LoadedClip) -> PromptConfig:
    """The prompts with the templates that `auto` stands for, which are said in one line."""
    if prompts.templates != (AUTO,):
        return prompts
    templates = own_templates(clip)
    reason = clip.fitting.reason if clip.fitting else "the captions that the text tower has read are unknown"
    print_stage("templates", f"{Fit(templates, 0.0).label}: {reason}", AUTO)
    return replace(prompts, templates=templates)


def own_templates(clip: LoadedClip) -> tuple[str, ...]:
    """What `auto` stands for."""
    return clip.fitting.templates if clip.fitting else UNKNOWN_TEMPLATES


def seen_captions(shards: list[Shard], columns: Columns, config: CaptionConfig) -> list[str]:
    """A few hundred captions as a text tower sees them in training."""
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
    """Say in one line if other templates seem to fit the model better; ask nothing where it is known.

    Args:
        clip: for its texts.
        embed: called where there is a doubt.
        cache_dir: where encoded prompts are kept.
    """
    if not _is_sure(prompts, clip):
        say_misfit(compare_templates(prompts, classes, clip, embed(), workers, cache_dir), clip)


def say_misfit(fits: list[Fit], clip: LoadedClip) -> None:
    """Warn in one line where others fit much better than the first of `compare_templates`."""
    own, *others = fits
    best = max(others, key=lambda fit: fit.nats, default=own)
    if best.nats - own.nats >= _LEAST_GAIN and best.nats >= _LEAST_RATIO * own.nats:
        known = f" ({clip.fitting.reason})" if clip.fitting else ""
        print_stage(
            "warning",
            f"templates {own.label} seem to fit the model less{known}: by them its predictions say "
            f"{own.nats:.2f} nats about an image, {best.nats:.2f} by --templates {best.label}",
        )


def warn_of_other_teachers(prompts: PromptConfig, teachers: Sequence[LoadedClip]) -> None:
    """Name the teachers behind the first one that are known to have read other captions."""
    for clip in teachers[1:]:
        if clip.fitting is not None and not _is_sure(prompts, clip):
            text = f"all teachers read the prompts of templates {Fit(prompts.templates, 0.0).label}"
            print_stage("warning", f"{text}; those of {clip.address} are others: {clip.fitting.reason}")


def compare_templates(
    prompts: PromptConfig,
    classes: Sequence[ClassEntry],
    clip: LoadedClip,
    images: Tensor,
    workers: WorkersConfig,
    cache_dir: Path,
) -> list[Fit]:
    """How well each set of templates fits, bare names in each: the configured ones first, then all others."""
    if len(images) == 0:
        return [Fit(prompts.templates, 0.0)]
    some = [classes[place] for place in _evenly(len(classes), CLASSES)]
    own = clip.fitting.templates if clip.fitting else ()
    candidates: list[tuple[str, ...]] = [prompts.templates]
    for templates in (own, *((name,) for name in COMPARED_SETS)):
        if templates and not any(_same(templates, each) for each in candidates):
            candidates.append(templates)
    # All at once: an encoder is set up for each call.
    prompts_of = [class_prompts(some, PromptConfig(templates=templates)) for templates in candidates]
    anchors, _ = encoded_prompts([*chain(*prompts_of)], "mean", clip, workers, cache_dir)
    shown = images[_evenly(len(images), IMAGES)]
    scale = float(clip.model.logit_scale.detach().exp())
    return [
        Fit(templates, information(shown, means, scale))
        for templates, means in zip(candidates, anchors.embeddings.split(len(some)), strict=True)
    ]


def embedded_by(tower: ImageTower, shards: list[Shard], workers: WorkersConfig) -> Embed:
    """Embeds some images of plain shards by an image tower; on a GPU of the cluster, where it has some."""

    def embed() -> Tensor:
        pixels = _some_images(shards, tower.preprocessing.size)
        if len(pixels) == 0:
            return torch.zeros(0, 0)
        if workers.without_ray or not workers.use_gpu:
            # A copy: a teacher changes its network's memory format.
            return _encode(deepcopy(tower), pixels, "cuda" if workers.use_gpu else "cpu")
        import ray

        remote: Any = ray.remote(num_gpus=1, num_cpus=0)(_encode)
        encoded: Tensor = ray.get(remote.remote(tower, pixels, "cuda"))
        return encoded

    return embed


def kept_in(views: CachedViews, shards: list[Shard]) -> Embed:
    """Takes embeddings of some images, by the first teacher that is asked for, out of a teacher cache."""

    def embed() -> Tensor:
        kept = [row["embeddings"][0] for row in _some_rows(shards, Columns(views=views))]
        vectors = [torch.frombuffer(bytearray(each), dtype=torch.float16).float() for each in kept if each]
        return torch.stack(vectors) if vectors else torch.zeros(0, 0)

    return embed


def _encode(tower: ImageTower, pixels: Tensor, device: str) -> Tensor:
    teacher = ImageTeacher(tower).to(device)
    return torch.cat([teacher.encode_image(batch.to(device)).cpu() for batch in pixels.split(64)])


def _some_images(shards: list[Shard], size: int) -> Tensor:
    """uint8 [N, 3, size, size]."""
    images = []
    for row in _some_rows(shards, Columns()):
        try:
            images.append(load_evaluation_image(row["image"], size))
        except Exception:  # training counts it
            continue
    stacked = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _some_rows(shards: list[Shard], columns: Columns) -> list[dict[str, Any]]:
    """Usable rows of a few shards, from the beginning of each: they are read forwards, and may be far."""
    chosen = [shards[place] for place in _evenly(len(shards), _SHARDS)]
    rows = []
    for shard in chosen:
        number = -(-IMAGES // len(chosen))
        asked = _evenly(min(shard.samples, _PASSED * number), number)
        rows += [row for row in iterate_rows(shard, columns, np.array(asked)) if not row["problem"]]
    return rows[:IMAGES]


def _evenly(total: int, most: int) -> list[int]:
    """At most so many of `range(total)`, at even distances."""
    number = min(total, most)
    return [total * (2 * place + 1) // (2 * number) for place in range(number)]


def _is_sure(prompts: PromptConfig, clip: LoadedClip) -> bool:
    """Whether the templates are among those of the captions that the model has read."""
    if clip.fitting is None:
        return False
    return set(resolve_templates(prompts.templates)) <= set(resolve_templates(clip.fitting.templates))


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    return set(resolve_templates(one)) == set(resolve_templates(other))
