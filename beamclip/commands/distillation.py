"""Run a distillation, from its options to the last line on the terminal."""

from dataclasses import replace
from pathlib import Path

from beamclip.cluster.session import share
from beamclip.commands.after_training import SCORING, AfterTraining, draw_curves
from beamclip.commands.batches import show_chosen, sized
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.distill_data import DistillData
from beamclip.commands.distill_inputs import (
    DistillInputs,
    anchors_of,
    check_templates,
    load_inputs,
    with_own_templates,
)
from beamclip.commands.distill_job import TrainingData, distillation_job, restore_student
from beamclip.commands.dry_run import here, random_anchors, show_plan
from beamclip.commands.options import DistillConfig
from beamclip.commands.pictures import draw_models
from beamclip.commands.run import TrainingResult, show_skipped, started_run
from beamclip.commands.scoring import (
    ModelScores,
    ScoredData,
    against_teacher,
    score_zeroshot,
)
from beamclip.commands.shipping import ship
from beamclip.commands.sources import show_sources
from beamclip.commands.validation import distillation_costs, distillation_validation, with_validation
from beamclip.errors import InputError
from beamclip.evaluation.results import write_scores
from beamclip.export.card import VISION_TEACHER, Card
from beamclip.export.open_clip_dir import write_card, write_open_clip_dir
from beamclip.heap import trim_heap
from beamclip.models.clip import LoadedClip, load_clip
from beamclip.models.student import attach_text_tower, drop_text_tower
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.classes import save_classes
from beamclip.prompts.templates import resolve_templates
from beamclip.runs.folder import CLASSES_FILE, MODEL, PLOTS, SHIP
from beamclip.summary import Summary
from beamclip.training.config import ValidationConfig
from beamclip.training.recipe import ValidationCosts
from beamclip.training.waiting import WaitingWorkers
from beamclip.training.worker import Storage, TrainingJob


def run_distillation(
    config: DistillConfig, data: DistillData, run_dir: Path, workers: WaitingWorkers | None, *, began: float
) -> Summary:
    """Run a distillation and write its run folder; errors as in distill.distill.

    Args:
        data: as returned by load_data.
        run_dir: folder of the run, which may not exist yet.
        workers: as yielded by waiting_workers; their Ray was started.
        began: time.perf_counter() when the command began.
    """
    inputs = load_inputs(config, data)
    given, config, shards = config, sized(config, data.shards), inputs.data.shards
    show_chosen(given, config, shards)
    show_sources(config, shards)
    config = with_own_templates(config, inputs)
    config = with_validation(
        config, inputs.data.classes, inputs.data.samples, lambda: _validation_costs(inputs)
    )
    teachers = inputs.teacher_refs
    with started_run("distill", config, run_dir, shards, workers, teachers=teachers, began=began) as run:
        if inputs.data.classes:
            save_classes(inputs.data.classes, run_dir / CLASSES_FILE)
        if config.resume is None:
            check_templates(config, inputs, run_dir.parent / "anchors")
        anchors, scored_anchors = anchors_of(config, inputs, run_dir.parent / "anchors")
        job = _job(config, inputs, anchors, scored_anchors, run.storage)
        title = _title(config, inputs)
        fingerprint = inputs.teachers[0].fingerprint
        # All texts are encoded, and the workers have the image towers: here they would only take memory.
        inputs.teachers.clear()
        inputs.image_towers.clear()
        drop_text_tower(inputs.student)
        trim_heap()
        trained = run.train(job, title)
        teacher = _export(config, inputs, trained, fingerprint, run_dir)
        after = AfterTraining()
        scores = (
            after.attempt(SCORING, lambda: _score(config, inputs, teacher, scored_anchors, run_dir))
            or ModelScores()
        )
        run.release_ray()
        after.attempt("curves", lambda: draw_curves(trained.history, run_dir))
        _show_and_ship(config, inputs, teacher, scored_anchors, scores, run_dir, after)
        stages = {
            "anchors": len(anchors[0].embeddings),
            "steps": trained.step,
            "parameters": {"teacher": teacher.parameters, "student": inputs.student.parameters},
        }
        summary = run.finish(
            trained,
            after,
            metrics=scores.metrics,
            intervals=scores.intervals,
            stages=stages,
            model=config.student.student,
        )
    show_distilled(scores, summary, trained, inputs, run_dir)
    return summary


def plan_distillation(config: DistillConfig, data: DistillData) -> Summary:
    """Print what a distillation would take, by a few steps on this machine; see `show_plan`.

    Args:
        data: as returned by load_data.
    """
    inputs = load_inputs(config, data)
    given, config = config, sized(config, data.shards)
    show_chosen(given, config, data.shards)
    show_sources(config, data.shards)
    texts = len(data.classes) if config.anchors != "captions" else 0
    texts += config.caption_anchors if config.anchors != "classes" else 0
    anchors = [random_anchors(texts, clip.embed_dim) for clip in inputs.teachers]
    local = replace(config, workers=here(config.workers), validation=ValidationConfig(eval_every=0))
    job = _job(local, inputs, anchors, None, Storage(checkpoints="", keep_checkpoints=1, resumes=False))
    widths = inputs.data.shards[0].views.widths[1:] if inputs.data.shards[0].views else ()
    return show_plan("distill", config, job, tuple(width // 2 for width in widths))


def _job(
    config: DistillConfig,
    inputs: DistillInputs,
    anchors: list[Anchors],
    scored_anchors: Anchors | None,
    storage: Storage,
) -> TrainingJob:
    towers = [] if inputs.data.manifests else inputs.image_towers
    texts = inputs.teachers[0] if towers and config.terms.read_captions else None
    return distillation_job(
        config,
        TrainingData(inputs.data.shards, inputs.image_size),
        teachers=[share(tower, config.workers) for tower in towers],
        student=share(inputs.student.image_tower, config.workers),
        anchors=share(anchors, config.workers),
        text_tower=share(texts, config.workers) if texts else None,
        vision_widths=[teacher.width for teacher in inputs.vision_teachers],
        storage=storage,
        validation=distillation_validation(
            config,
            inputs.student,
            inputs.data.classes,
            scored_anchors,
            list(zip(inputs.teachers, inputs.clip_towers, strict=True)),
        ),
    )


def _export(
    config: DistillConfig, inputs: DistillInputs, trained: TrainingResult, fingerprint: str, run_dir: Path
) -> LoadedClip:
    """Write the student with the trained weights and its teacher's text tower; return the teacher."""
    restore_student(inputs.student.model.visual, trained.weights)
    trained.weights.clear()
    trim_heap()
    teacher = reload_teacher(config, fingerprint, run_dir)
    attach_text_tower(inputs.student, teacher)
    write_open_clip_dir(inputs.student, run_dir / MODEL, _card(config, inputs, ModelScores()))
    return teacher


def _show_and_ship(
    config: DistillConfig,
    inputs: DistillInputs,
    teacher: LoadedClip,
    anchors: Anchors | None,
    scores: ModelScores,
    run_dir: Path,
    after: AfterTraining,
) -> None:
    """Write the model card, draw the pictures and, with --ship, export the student, step by step."""
    card = _card(config, inputs, scores)
    after.attempt("model card", lambda: write_card(inputs.student, run_dir / MODEL, card))
    after.attempt("pictures", lambda: _draw(config, inputs, teacher, anchors, run_dir))
    after.attempt("contexts", lambda: _draw_contexts(config, inputs, teacher, anchors, run_dir))
    if config.ship:
        ship(config, inputs.student, inputs.data.classes, anchors, run_dir, after)


def reload_teacher(config: DistillConfig, fingerprint: str, run_dir: Path) -> LoadedClip:
    """Load the teacher again, which was dropped while the student trained.

    Raises:
        InputError: it cannot be loaded, or has other weights now, whose text tower would not fit the student.
    """
    kept = f"The student's checkpoints are kept: put the original teacher back, and give --resume {run_dir}."
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


def _validation_costs(inputs: DistillInputs) -> ValidationCosts:
    cached = bool(inputs.data.manifests)
    vision = inputs.image_towers[len(inputs.teachers) :]
    return distillation_costs(inputs.student, inputs.clip_towers, vision, cached=cached)


def _scored_data(config: DistillConfig, inputs: DistillInputs) -> ScoredData | None:
    scoring = config.scoring
    if scoring.eval_data is None:
        return None
    return ScoredData(
        scoring.eval_data,
        scoring.label_column,
        inputs.data.classes,
        scoring.scoring_batch,
        config.stream.allow_missing_shards,
    )


def _score(
    config: DistillConfig, inputs: DistillInputs, teacher: LoadedClip, anchors: Anchors | None, run_dir: Path
) -> ModelScores:
    """Score teacher and student on the same images, and write the scores of each image."""
    data = _scored_data(config, inputs)
    if data is None or anchors is None:
        return ModelScores()
    of_teacher = score_zeroshot(teacher, anchors, data, config.workers)
    of_student = against_teacher(score_zeroshot(inputs.student, anchors, data, config.workers), of_teacher)
    write_scores(run_dir, of_teacher.scores, "teacher")
    write_scores(run_dir, of_student.scores)
    number, classes = len(of_student.scores), len(inputs.data.classes)
    print_stage("scored", f"{plural(number, 'image')}, {plural(classes, 'class')}", "zero-shot")
    return of_student.model_scores()


def _draw(
    config: DistillConfig, inputs: DistillInputs, teacher: LoadedClip, anchors: Anchors | None, run_dir: Path
) -> None:
    data = _scored_data(config, inputs)
    if data is None or anchors is None:
        return
    models = {"teacher": (teacher, anchors), "student": (inputs.student, anchors)}
    draw_models(models, data, run_dir / PLOTS)


def _draw_contexts(
    config: DistillConfig, inputs: DistillInputs, teacher: LoadedClip, anchors: Anchors | None, run_dir: Path
) -> None:
    if anchors is None or not config.prompts.num_contexts:
        return
    # Importing matplotlib takes half a second, for which training need not wait.
    from beamclip.commands.context_effect import effect_on_anchors
    from beamclip.plots.contexts import plot_contexts, write_contexts

    effect = effect_on_anchors(
        inputs.data.classes, config.prompts, anchors, teacher, run_dir.parent / "anchors"
    )
    plots = run_dir / PLOTS
    write_contexts(effect, plots / "contexts.json")
    plot_contexts(effect, plots / "contexts.png")


def _card(config: DistillConfig, inputs: DistillInputs, scores: ModelScores) -> Card:
    return Card(
        facts={
            "teacher": " + ".join(map(str, (config.teacher, *config.more_teachers))),
            **({VISION_TEACHER: " + ".join(config.vision_teachers)} if config.vision_teachers else {}),
            "student": config.student.student,
            "data": " + ".join(config.data),
        },
        metrics=scores.metrics,
        intervals=scores.intervals,
        classes=tuple(entry.name for entry in inputs.data.classes),
        templates=resolve_templates(config.prompts.templates) if inputs.data.classes else (),
    )


def _title(config: DistillConfig, inputs: DistillInputs) -> str:
    of_clips = [_teacher_name(teacher) for teacher in inputs.teachers]
    names = " + ".join([*of_clips, *(teacher.name for teacher in inputs.vision_teachers)])
    return f"{config.student.student} <- {names}{', cached' if inputs.data.manifests else ''}"


def _teacher_name(teacher: LoadedClip) -> str:
    vision = teacher.model_cfg["vision_cfg"]
    if teacher.address.startswith("open_clip:"):
        return teacher.address.removeprefix("open_clip:")
    return str(vision.get("timm_model_name") or f"ViT of width {vision.get('width')}")


def show_distilled(
    scores: ModelScores, summary: Summary, trained: TrainingResult, inputs: DistillInputs, run_dir: Path
) -> None:
    """Print the last lines: skipped samples, scores, and where everything was written."""
    show_skipped(trained, summary.counts.attempted)
    if "zeroshot_top1" in scores.metrics:
        top1, top5 = scores.text("zeroshot_top1"), scores.text("zeroshot_top5")
        print(f"zero-shot top-1 {top1}, top-5 {top5}")
    if "teacher_zeroshot_top1" in scores.metrics:
        top1, top5 = scores.text("teacher_zeroshot_top1"), scores.text("teacher_zeroshot_top5")
        print(f"teacher   top-1 {top1}, top-5 {top5}; chance {percent(1 / len(inputs.data.classes))}")
    shipped = f"{SHIP}/  " if (run_dir / SHIP).is_dir() else ""
    print(f"{run_dir}: model/  plots/  report.html  {shipped}summary.json")
