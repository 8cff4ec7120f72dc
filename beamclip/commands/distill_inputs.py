"""Load and check the models of a distillation, and build its anchors. A sweep uses this too."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from beamclip.commands.anchors import captions_as_anchors, class_anchors, joined
from beamclip.commands.batch_norms import check_batch_norms
from beamclip.commands.batches import sized
from beamclip.commands.console import plural, print_stage
from beamclip.commands.contexts import context_sources
from beamclip.commands.distill_data import DistillData
from beamclip.commands.lineage import model_ref
from beamclip.commands.options import DistillConfig
from beamclip.commands.templates import (
    embedded_by,
    kept_in,
    warn_of_misfit,
    warn_of_other_teachers,
    with_templates,
)
from beamclip.data.cache import CachedViews, CacheManifest, augmentation_differences
from beamclip.errors import InputError
from beamclip.models.clip import ImageTower, LoadedClip, load_clip, text_tower
from beamclip.models.config import StudentConfig
from beamclip.models.student import build_student
from beamclip.models.vision import VisionTeacher, load_vision_teacher
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.contexts import ContextSource
from beamclip.tracking import ModelRef
from beamclip.training.frozen import check_layers

Distilling = TypeVar("Distilling", bound=DistillConfig)


@dataclass(frozen=True)
class DistillInputs:
    """Everything that the options of a distillation name, loaded and checked."""

    data: DistillData
    """What is trained on; shards of teacher caches know what is read from them."""
    teachers: list[LoadedClip]
    """Without their image towers."""
    vision_teachers: list[VisionTeacher]
    """Those without a text tower."""
    image_towers: list[ImageTower]
    """Image towers of the teachers, then of those of vision only. The workers run them, unless a cache holds
    the embeddings; the command embeds the images to validate on."""
    student: LoadedClip

    @property
    def clip_towers(self) -> list[ImageTower]:
        """Image towers of the teachers that have a text tower."""
        return self.image_towers[: len(self.teachers)]

    @property
    def teacher_refs(self) -> list[ModelRef]:
        """All teachers, as MLflow links them."""
        every: tuple[LoadedClip | VisionTeacher, ...] = (*self.teachers, *self.vision_teachers)
        return [model_ref(each.address, each.fingerprint) for each in every]

    @property
    def image_size(self) -> int:
        """Side of the images that training sees, pixels."""
        manifests = self.data.manifests
        if manifests:
            return manifests[0].image_size
        return needed_size(self.teachers, self.student, self.vision_teachers)


def load_inputs(config: DistillConfig, data: DistillData) -> DistillInputs:
    """Load and check the models before training is started.

    Args:
        data: as returned by `load_data`.

    Raises:
        InputError: for the first input that cannot be used.
    """
    loaded = [load_clip(address) for address in (str(config.teacher), *config.more_teachers)]
    teachers = [text_tower(clip) for clip in loaded]
    student = build_student(config.student, teachers[0], config.seed)
    check_layers(student.model.visual, config.optim.frozen_layers)
    vision = [load_vision_teacher(each, config.vision_image_size) for each in config.vision_teachers]
    vision_teachers = [teacher for teacher, _ in vision]
    shards, manifests = data.shards, data.manifests
    check_batch_norms(sized(config, shards), student)
    _show_init(config.student, student)
    data = with_views(config, data, teachers, student, vision_teachers)
    images = f"{plural(len(shards), 'file')}, {plural(sum(s.samples for s in shards), 'image')}"
    views = "/".join(dict.fromkeys(str(manifest.augmentations) for manifest in manifests))
    print_stage("shards", images, f"cached views of each: {views}" if manifests else "")
    towers = [*(clip.image_tower for clip in loaded), *(tower for _, tower in vision)]
    return DistillInputs(data, teachers, vision_teachers, towers, student)


def _show_init(config: StudentConfig, student: LoadedClip) -> None:
    if config.init_checkpoint is not None:
        pixels = student.preprocessing
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (pixels.mean, pixels.std))
        print_stage("student", f"{config.student} from {config.init_checkpoint}", f"mean {mean}, std {std}")


def needed_size(
    teachers: Sequence[LoadedClip], student: LoadedClip, vision_teachers: Sequence[VisionTeacher] = ()
) -> int:
    """Side of the images to decode, pixels: that of the largest model; smaller models shrink them."""
    models: tuple[LoadedClip | VisionTeacher, ...] = (*teachers, student, *vision_teachers)
    return max(model.image_size for model in models)


def with_views(
    config: DistillConfig,
    data: DistillData,
    teachers: Sequence[LoadedClip],
    student: LoadedClip,
    vision_teachers: Sequence[VisionTeacher],
) -> DistillData:
    """Return the data with what training reads from teacher caches, which must suit this distillation.

    Raises:
        InputError: a cache was made with other teachers, smaller images or another augmentation.
    """
    if not data.manifests:
        return data
    caches = zip(config.data, data.manifests, strict=True)
    views = [
        _cached_views(address, config, manifest, teachers, student, vision_teachers)
        for address, manifest in caches
    ]
    return replace(data, shards=[replace(shard, views=views[shard.source]) for shard in data.shards])


def _cached_views(
    address: str,
    config: DistillConfig,
    manifest: CacheManifest,
    teachers: Sequence[LoadedClip],
    student: LoadedClip,
    vision_teachers: Sequence[VisionTeacher],
) -> CachedViews:
    own = _cached_places(address, manifest, (*teachers, *vision_teachers))
    size = needed_size(teachers, student)
    if manifest.image_size < size:
        raise InputError(
            f"{address}: was made from images of {manifest.image_size} px, and {config.student.student} "
            f"takes {size} px. Build a cache with --image-size {size}, or lower --student-image-size."
        )
    differing = augmentation_differences(manifest.augmentation, asdict(config.augmentation.chosen()))
    if differing:
        raise InputError(
            f"{address}: was made with another augmentation: {'; '.join(differing)}. Use that of the "
            "cache (--config with its distill.yaml), or build another cache."
        )
    if config.terms.read_captions and not manifest.captions:
        raise InputError(
            f"{address}: holds no embeddings of captions, which --icl-weight, --crd-weight and "
            "--affinity-weight need. Build a cache with --captions, or leave them out."
        )
    return manifest.views(own, captions=config.terms.read_captions)


def _cached_places(
    address: str, manifest: CacheManifest, teachers: Sequence[LoadedClip | VisionTeacher]
) -> tuple[int, ...]:
    """Return the places of teachers among those of a cache."""
    places = {teacher.fingerprint: index for index, teacher in enumerate(manifest.teachers)}
    for teacher in teachers:
        if teacher.fingerprint not in places:
            vision_only = isinstance(teacher, VisionTeacher)
            of_kind = [each for each in manifest.teachers if each.vision_only == vision_only]
            held = ", ".join(f"{each.address} ({each.fingerprint[:12]})" for each in of_kind) or "none"
            option = "one of --vision-teachers" if vision_only else "--teacher"
            raise InputError(
                f"{address}: holds no embeddings by {teacher.address} ({teacher.fingerprint[:12]}), but by "
                f"{held}. Give one of these as {option}, or build another cache with beamclip embed."
            )
    return tuple(places[teacher.fingerprint] for teacher in teachers)


def with_own_templates(config: Distilling, inputs: DistillInputs) -> Distilling:
    """Replace the templates `auto` in the configuration by those that fit the first teacher."""
    if not inputs.data.classes:
        return config
    return replace(config, prompts=with_templates(config.prompts, inputs.teachers[0]))


def check_templates(config: DistillConfig, inputs: DistillInputs, cache: Path) -> None:
    """Warn if other templates seem to fit the first teacher better, or are known to fit another teacher.

    Args:
        cache: folder in which encoded prompts are kept.
    """
    if not inputs.data.classes:
        return
    if inputs.data.manifests:
        embed = kept_in(inputs.data.shards)
    else:
        embed = embedded_by(inputs.image_towers[0], inputs.data.shards, config.workers)
    warn_of_misfit(config.prompts, inputs.data.classes, inputs.teachers[0], embed, config.workers, cache)
    warn_of_other_teachers(config.prompts, inputs.teachers)


def anchors_of(
    config: DistillConfig, inputs: DistillInputs, cache: Path
) -> tuple[list[Anchors], Anchors | None]:
    """Return each teacher's anchors to train on, and the first teacher's class anchors to score with, if any.

    Args:
        cache: folder in which encoded prompts are kept.
    """
    allow_missing = config.stream.allow_missing_shards
    external_sources = context_sources(
        inputs.data.classes, config.prompts, config.data, cache, allow_missing=allow_missing
    )
    pairs = [_anchors_of(teacher, config, inputs, external_sources, cache) for teacher in inputs.teachers]
    return [used for used, _ in pairs], pairs[0][1]


def _anchors_of(
    teacher: LoadedClip,
    config: DistillConfig,
    inputs: DistillInputs,
    external_sources: dict[str, ContextSource],
    cache: Path,
) -> tuple[Anchors, Anchors | None]:
    parts = []
    if inputs.data.classes:
        parts.append(
            class_anchors(
                inputs.data.classes, config.prompts, external_sources, teacher, config.workers, cache
            )
        )
    of_classes = parts[0] if parts else None
    if config.anchors != "classes":
        drawn = captions_as_anchors(
            inputs.data.shards, config.caption_anchors, config.seed, teacher, config.workers, cache
        )
        parts = [drawn] if config.anchors == "captions" else [*parts, drawn]
    return joined(parts), of_classes
