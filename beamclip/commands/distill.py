"""Distil a CLIP teacher into a small student, from images alone."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from beamclip.cluster import check_resources, share, workers_session
from beamclip.commands.after_training import SCORING, AfterTraining
from beamclip.commands.anchoring import captions_as_anchors, class_anchors, joined
from beamclip.commands.console import count, percent, stage
from beamclip.commands.context_sources import check_contexts, context_sources
from beamclip.commands.options import DistillConfig
from beamclip.commands.scoring import ScoredData, draw_comparison, score_zeroshot
from beamclip.commands.templates import (
    embedded_by,
    kept_in,
    warn_of_misfit,
    warn_of_other_teachers,
    with_templates,
)
from beamclip.commands.train import (
    Trained,
    check_batch_norms,
    check_batches,
    finish,
    open_run,
    show_chosen,
    show_skipped,
    sized,
    storage_of,
    tracked,
    train,
)
from beamclip.data.cache import (
    CachedViews,
    CacheManifest,
    augmentation_differences,
    finished_manifest,
    is_cache,
)
from beamclip.data.shards import Shard, list_labelled, list_shards
from beamclip.errors import InputError
from beamclip.freed_memory import hand_back_freed_memory
from beamclip.models.clip import ImageTower, LoadedClip, load_clip, text_tower
from beamclip.models.config import StudentConfig
from beamclip.models.export import write_card, write_open_clip_dir
from beamclip.models.student import build_student, lend_text_tower, release_text_tower
from beamclip.plots.curves import plot_curves
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import ClassEntry, load_classes
from beamclip.prompts.contexts import Source
from beamclip.runs.folder import MODEL, PLOTS, new_run_dir
from beamclip.summary import Summary
from beamclip.training.distillation import Images, distillation_plan, restore_student

Distilling = TypeVar("Distilling", bound=DistillConfig)


@dataclass(frozen=True)
class Inputs:
    """What the flags of a distillation name, loaded and checked."""

    shards: list[Shard]
    teachers: list[LoadedClip]
    """For texts alone: their image towers are the workers' or, with a cache, nobody's."""
    image_towers: list[ImageTower]
    """None with a cache."""
    student: LoadedClip
    classes: list[ClassEntry]
    manifest: CacheManifest | None
    """Of the teacher cache, where the data are one."""
    views: CachedViews | None
    """What to take from it."""

    @property
    def image_size(self) -> int:
        """Side of the pixels that training sees."""
        return self.manifest.image_size if self.manifest else needed_size(self.teachers, self.student)


def load_inputs(config: DistillConfig) -> Inputs:
    """Load everything that can be wrong before anything is started.

    Raises:
        InputError: for the first thing that cannot be used.
    """
    # An address that is wrong is told of before an option that is missing.
    allow_missing = config.stream.allow_missing_shards
    shards = list_shards(config.data, allow_missing=allow_missing) if config.data else []
    check_options(config)
    check_batches(sized(config, shards), shards)
    classes = load_classes(config.classes) if config.classes else []
    check_contexts(classes, config.prompts, config.data, allow_missing=allow_missing)
    if config.scoring.eval_data:
        list_labelled(config.scoring.eval_data, allow_missing=allow_missing)
    manifest = finished_manifest(str(config.data)) if is_cache(str(config.data)) else None
    loaded = [load_clip(address) for address in (str(config.teacher), *config.more_teachers)]
    teachers = [text_tower(clip) for clip in loaded]
    student = build_student(config.student, teachers[0], config.seed)
    check_batch_norms(sized(config, shards), student)
    _show_init(config.student, student)
    views = cached_views(config, manifest, teachers, student) if manifest else None
    images = f"{count(len(shards), 'file')}, {count(sum(s.samples for s in shards), 'image')}"
    stage("shards", images, f"{count(manifest.augmentations, 'cached view')} each" if manifest else "")
    towers = [] if manifest else [clip.image_tower for clip in loaded]
    return Inputs(shards, teachers, towers, student, classes, manifest, views)


def _show_init(config: StudentConfig, student: LoadedClip) -> None:
    if config.init_checkpoint is not None:
        pixels = student.preprocessing
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (pixels.mean, pixels.std))
        stage("student", f"{config.student} from {config.init_checkpoint}", f"mean {mean}, std {std}")


def check_options(config: DistillConfig) -> None:
    """Refuse options that say too little, or contradict each other.

    Raises:
        InputError: with the option.
    """
    if config.data is None or config.teacher is None:
        missing = "--data SHARDS" if config.data is None else "--teacher T"
        raise InputError(f"{missing} is missing. Without any option at all, the quickstart runs instead.")
    if config.classes is None and config.anchors != "captions":
        raise InputError(
            "--classes FILE is missing. The anchors are made of it; --anchors captions does without."
        )
    if config.csm.csm_weight == 0 and config.feature.feature_weight == 0:
        raise InputError("--csm-weight and --feature-weight are both 0: nothing would be learned.")
    for name in ("tau_teacher", "tau_student"):
        if getattr(config.csm, name) <= 0:
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(config.csm, name)}: a temperature is above 0."
            )


def needed_size(teachers: list[LoadedClip], student: LoadedClip) -> int:
    """Side of the pixels that all models can do with: the smaller ones shrink them."""
    return max(clip.image_size for clip in (*teachers, student))


def cached_views(
    config: DistillConfig, manifest: CacheManifest, teachers: list[LoadedClip], student: LoadedClip
) -> CachedViews:
    """What to take from a cache, if it is one for this distillation.

    Raises:
        InputError: it is of other teachers, of smaller images, or of another augmentation.
    """
    places = {teacher.fingerprint: index for index, teacher in enumerate(manifest.teachers)}
    for teacher in teachers:
        if teacher.fingerprint not in places:
            held = ", ".join(f"{each.address} ({each.fingerprint[:12]})" for each in manifest.teachers)
            raise InputError(
                f"{config.data}: holds no embeddings by {teacher.address} ({teacher.fingerprint[:12]}), "
                f"but by {held}. Give --teacher one of these, or build another cache with pipelines/embed.py."
            )
    size = needed_size(teachers, student)
    if manifest.image_size < size:
        raise InputError(
            f"{config.data}: was made from images of {manifest.image_size} px, and {config.student.student} "
            f"takes {size} px. Build a cache with --image-size {size}, or lower --student-image-size."
        )
    differing = augmentation_differences(manifest.augmentation, asdict(config.augmentation))
    if differing:
        raise InputError(
            f"{config.data}: was made by another augmentation: {'; '.join(differing)}. Give what is there "
            "(the cache's distill.yaml has it: --config), or build another cache."
        )
    return manifest.views(tuple(places[teacher.fingerprint] for teacher in teachers))


def distill(config: DistillConfig) -> Summary:
    """Run a distillation and leave its run directory.

    Raises:
        InputError: something that was given cannot be used.
        TrainingError: the run could not be finished.
    """
    began = time.perf_counter()
    run_dir = new_run_dir(config.out, "distill")
    inputs = load_inputs(config)
    given, config = config, sized(config, inputs.shards)
    show_chosen(given, config, inputs.shards)
    config = with_own_templates(config, inputs)
    open_run(config, run_dir, inputs.shards)
    with workers_session(config.workers), tracked(config, run_dir, "distill") as tracking:
        check_resources(config.workers)
        if config.resume is None:
            check_templates(config, inputs, run_dir.parent / "anchors")
        anchors, scored_anchors = anchors_of(config, inputs, run_dir.parent / "anchors")
        plan = distillation_plan(
            config,
            Images(inputs.shards, inputs.views, inputs.image_size),
            teachers=[share(tower, config.workers) for tower in inputs.image_towers],
            student=share(inputs.student.image_tower, config.workers),
            anchors=share(anchors, config.workers),
            storage=storage_of(config, run_dir),
        )
        title = _title(config, inputs)
        fingerprint = inputs.teachers[0].fingerprint
        # All texts are encoded, and the workers have the image towers: here they would only take memory.
        inputs.teachers.clear()
        inputs.image_towers.clear()
        release_text_tower(inputs.student)
        hand_back_freed_memory()
        trained = train("distill", plan, config.workers, run_dir, tracking, title)
        restore_student(inputs.student.model.visual, trained.weights)
        trained.weights.clear()
        hand_back_freed_memory()
        teacher = teacher_again(config, fingerprint, run_dir)
        lend_text_tower(inputs.student, teacher)
        after, metrics = _leave_model(config, inputs, teacher, scored_anchors, trained, run_dir)
        summary = finish(
            "distill",
            config,
            run_dir,
            tracking,
            trained,
            inputs.shards,
            began=began,
            metrics=metrics,
            after=after,
            stages={"anchors": len(anchors[0].embeddings), "steps": trained.step},
        )
    show_distilled(summary, trained, inputs, run_dir)
    return summary


def with_own_templates(config: Distilling, inputs: Inputs) -> Distilling:
    """The configuration with the templates that `auto` stands for, which are the first teacher's."""
    if not inputs.classes:
        return config
    return replace(config, prompts=with_templates(config.prompts, inputs.teachers[0]))


def check_templates(config: DistillConfig, inputs: Inputs, cache: Path) -> None:
    """Warn of templates that do not seem to fit the first teacher.

    Args:
        cache: folder in which encoded prompts are kept.
    """
    if not inputs.classes:
        return
    if inputs.views:
        embed = kept_in(inputs.views, inputs.shards)
    else:
        embed = embedded_by(inputs.image_towers[0], inputs.shards, config.workers)
    warn_of_misfit(config.prompts, inputs.classes, inputs.teachers[0], embed, config.workers, cache)
    warn_of_other_teachers(config.prompts, inputs.teachers)


def anchors_of(config: DistillConfig, inputs: Inputs, cache: Path) -> tuple[list[Anchors], Anchors | None]:
    """Each teacher's anchors to train on, and the first one's of the classes, which scores are made with.

    Args:
        cache: folder in which encoded prompts are kept.
    """
    allow_missing = config.stream.allow_missing_shards
    outside = context_sources(inputs.classes, config.prompts, config.data, cache, allow_missing=allow_missing)
    pairs = [_anchors_of(teacher, config, inputs, outside, cache) for teacher in inputs.teachers]
    return [used for used, _ in pairs], pairs[0][1]


def _anchors_of(
    teacher: LoadedClip, config: DistillConfig, inputs: Inputs, outside: dict[str, Source], cache: Path
) -> tuple[Anchors, Anchors | None]:
    parts = []
    if inputs.classes:
        parts.append(class_anchors(inputs.classes, config.prompts, outside, teacher, config.workers, cache))
    of_classes = parts[0] if parts else None
    if config.anchors != "classes":
        drawn = captions_as_anchors(
            inputs.shards, config.caption_anchors, config.seed, teacher, config.workers, cache
        )
        parts = [drawn] if config.anchors == "captions" else [*parts, drawn]
    return joined(parts), of_classes


def teacher_again(config: DistillConfig, fingerprint: str, run_dir: Path) -> LoadedClip:
    """The teacher, which was let go while the student trained.

    Raises:
        InputError: it is gone, or another one now, whose text tower would not fit the student.
    """
    kept = f"The student's checkpoints are kept: put the first teacher back, and give --resume {run_dir}."
    try:
        teacher = load_clip(str(config.teacher))
    except InputError as error:
        raise InputError(f"--teacher: cannot be loaded for a second time: {error} {kept}") from error
    if teacher.fingerprint != fingerprint:
        raise InputError(
            f"--teacher {config.teacher}: has other weights now than when training began "
            f"({teacher.fingerprint[:12]}, not {fingerprint[:12]}). {kept}"
        )
    return teacher


def _leave_model(
    config: DistillConfig,
    inputs: Inputs,
    teacher: LoadedClip,
    anchors: Anchors | None,
    trained: Trained,
    run_dir: Path,
) -> tuple[AfterTraining, dict[str, float]]:
    """Write the student before all else, then score and draw it."""
    student, model_dir = inputs.student, run_dir / MODEL
    write_open_clip_dir(student, model_dir, _card(config, {}))
    after = AfterTraining()
    if trained.history:
        after.attempt("curves", lambda: plot_curves(trained.history, run_dir / PLOTS / "curves.png"))
    metrics = after.attempt(SCORING, lambda: _score(config, inputs, teacher, anchors)) or {}
    after.attempt("model card", lambda: write_card(student, model_dir, _card(config, metrics)))
    after.attempt("pictures", lambda: _draw(config, inputs, teacher, anchors, run_dir))
    return after, metrics


def _scored_data(config: DistillConfig, inputs: Inputs) -> ScoredData | None:
    scoring = config.scoring
    if scoring.eval_data is None:
        return None
    return ScoredData(
        scoring.eval_data,
        scoring.label_column,
        inputs.classes,
        scoring.scoring_batch,
        config.stream.allow_missing_shards,
    )


def _score(
    config: DistillConfig, inputs: Inputs, teacher: LoadedClip, anchors: Anchors | None
) -> dict[str, float]:
    data = _scored_data(config, inputs)
    if data is None or anchors is None:
        return {}
    of_teacher, _ = score_zeroshot(teacher, anchors, data, config.workers)
    of_student, encoded = score_zeroshot(inputs.student, anchors, data, config.workers)
    stage(
        "scored", f"{count(len(encoded.labels), 'image')}, {count(len(inputs.classes), 'class')}", "zero-shot"
    )
    reference = of_teacher["zeroshot_top1"]
    kept = {"retained_top1": of_student["zeroshot_top1"] / reference} if reference else {}
    return {
        **of_student,
        **{f"teacher_{name}": value for name, value in of_teacher.items()},
        **kept,
        "scored_images": float(len(encoded.labels)),
        "scored_skipped": float(sum(encoded.skipped.values())),
    }


def _draw(
    config: DistillConfig, inputs: Inputs, teacher: LoadedClip, anchors: Anchors | None, run_dir: Path
) -> None:
    data = _scored_data(config, inputs)
    if data is None or anchors is None:
        return
    draw_comparison(
        teacher,
        inputs.student,
        anchors,
        data,
        tau_teacher=config.csm.tau_teacher,
        tau_student=config.csm.tau_student,
        plots=run_dir / PLOTS,
    )


def _card(config: DistillConfig, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "teacher": " + ".join(map(str, (config.teacher, *config.more_teachers))),
        "student": config.student.student,
        "data": config.data,
        "metrics": metrics,
    }


def _title(config: DistillConfig, inputs: Inputs) -> str:
    names = " + ".join(_teacher_name(teacher) for teacher in inputs.teachers)
    return f"{config.student.student} <- {names}{', cached' if inputs.manifest else ''}"


def _teacher_name(teacher: LoadedClip) -> str:
    vision = teacher.model_cfg["vision_cfg"]
    if teacher.address.startswith("open_clip:"):
        return teacher.address.removeprefix("open_clip:")
    return str(vision.get("timm_model_name") or f"ViT of width {vision.get('width')}")


def show_distilled(summary: Summary, trained: Trained, inputs: Inputs, run_dir: Path) -> None:
    """The last lines on the terminal: scores, what was skipped, where everything lies."""
    show_skipped(trained, summary.counts.attempted)
    metrics = {name: value or 0.0 for name, value in summary.metrics.items()}
    if "zeroshot_top1" in metrics:
        names = ("zeroshot_top1", "zeroshot_top5", "teacher_zeroshot_top1", "teacher_zeroshot_top5")
        top1, top5, teacher_top1, teacher_top5 = (percent(metrics[name]) for name in names)
        chance = percent(1 / len(inputs.classes))
        print(
            f"zero-shot top-1 {top1}, top-5 {top5}  (teacher {teacher_top1}, {teacher_top5}; chance {chance})"
        )
    print(f"{run_dir}: model/  plots/  summary.json")
