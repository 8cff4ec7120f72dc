"""Load, check and prepare, once, what all trials of a sweep share."""

import hashlib
import itertools
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import ray

from beamclip.cluster.nodes import ask_cluster
from beamclip.commands.batch_norms import check_batch_norms
from beamclip.commands.batches import check_batches, sized
from beamclip.commands.class_list import label_ids
from beamclip.commands.console import plural, print_stage
from beamclip.commands.contexts import check_contexts
from beamclip.commands.distill_data import check_options, load_data
from beamclip.commands.distill_inputs import (
    DistillInputs,
    anchors_of,
    check_templates,
    load_inputs,
    needed_size,
    with_views,
)
from beamclip.commands.distill_job import TrainingData
from beamclip.commands.embed import build_cache
from beamclip.commands.lineage import dataset_name
from beamclip.commands.options import DistillConfig, EmbedConfig, SweepConfig
from beamclip.commands.scoring import SCORING_TEMPERATURE
from beamclip.commands.sources import list_sources, places_of, read_manifests
from beamclip.commands.templates import own_templates
from beamclip.data.cache import is_cache, read_manifest
from beamclip.errors import InputError
from beamclip.evaluation.encode import load_held_out
from beamclip.heap import trim_heap
from beamclip.models.clip import LoadedClip
from beamclip.models.student import build_student
from beamclip.option_texts import check_required
from beamclip.prompts.anchors import Anchors
from beamclip.prompts.templates import AUTO
from beamclip.runs.folder import checkpoint_address
from beamclip.storage import stored_run
from beamclip.sweep.run_trial import TrialInputs, prompts_key, student_key
from beamclip.sweep.space import Settings, Space, Values, applied, combinations, grid, parse_space, shown

CACHE = "cache"


@dataclass(frozen=True)
class Loaded:
    """The inputs of a sweep, loaded and checked."""

    inputs: DistillInputs
    space: Space
    students: dict[str, LoadedClip]
    """`student_key` -> the untrained student."""


def load_sweep(config: SweepConfig, out: Path) -> Loaded:
    """Load and check all inputs, for every setting of the space, before Ray is started.

    Args:
        out: folder of the sweep.

    Raises:
        InputError: an option or an input cannot be used.
    """
    _check_given(config)
    space = parse_space(config.search.vary, config)
    if config.search.grid:
        grid(space)
    most = with_all_terms(config, space)
    for settings in _partial(space, config, ("csm", "feature", "terms", "vision")):
        check_options(applied(most, settings))
    data = load_data(most)
    ask_cluster(places_of(config, data.shards, out))
    inputs = load_inputs(config, data)
    space = with_own_values(space, inputs.teachers[0])
    # Trials read the teachers' embeddings from the cache.
    inputs.image_towers.clear()
    for settings in _partial(space, config, ("stream", "optim")):
        check_batches(sized(applied(config, settings), inputs.data.shards), inputs.data.shards)
    for settings in _partial(space, config, ("prompts",)):
        prompts = applied(config, settings).prompts
        allow_missing = config.stream.allow_missing_shards
        check_contexts(inputs.data.classes, prompts, config.data, allow_missing=allow_missing)
    students = {}
    for settings in _partial(space, config, ("student",), ("seed",)):
        changed = applied(config, settings)
        student = build_student(changed.student, inputs.teachers[0], changed.seed)
        for sizes in _partial(space, config, ("stream", "optim")):
            check_batch_norms(sized(applied(changed, sizes), inputs.data.shards), student)
        terms = with_all_terms(changed, space)
        with_views(terms, inputs.data, inputs.teachers, student, inputs.vision_teachers)
        students[student_key(changed.student, changed.seed)] = student
    tried = " x ".join(f"{name} ({_extent(choice)})" for name, choice in space.items())
    total = combinations(space)
    print_stage("space", tried, f"{plural(total, 'combination')}" if total else "")
    return Loaded(inputs, space, students)


def with_all_terms(config: DistillConfig, space: Space) -> DistillConfig:
    """Return the options with the largest weights that a trial may give to terms: it reads what any reads."""
    largest = {
        name: max(choice.values) if isinstance(choice, Values) else choice.high
        for name, choice in space.items()
        if name.endswith("_weight")
    }
    return applied(config, largest)


def _check_given(config: SweepConfig) -> None:
    if config.workers.without_ray:
        raise InputError("--num-workers 0: the trials of a sweep run in processes of Ray. Give 1 or more.")
    if config.ship:
        raise InputError(
            "--ship: a sweep keeps scores, not students. Give it to beamclip distill --config best.yaml."
        )
    check_required(
        config,
        also={"--eval-data": config.scoring.eval_data},
        hint="A sweep trains students of a teacher and compares their zero-shot scores on held-out images.",
    )


def with_own_values(space: Space, teacher: LoadedClip) -> Space:
    """Return the space with the teacher's own templates in place of `auto`, each value once."""
    choice = space.get("templates")
    if not isinstance(choice, Values):
        return space
    values = (own_templates(teacher) if value == (AUTO,) else value for value in choice.values)
    return {**space, "templates": Values(tuple(dict.fromkeys(values)))}


def _extent(choice: Any) -> str:
    if isinstance(choice, Values):
        return ", ".join(map(shown, choice.values))
    return f"{choice.low:g} to {choice.high:g}"


def _partial(
    space: Space, config: DistillConfig, sections: tuple[str, ...], options: tuple[str, ...] = ()
) -> Iterator[Settings]:
    """Yield every combination of the values of `options` and of the options in `sections`."""
    own = {item.name for section in sections for item in fields(getattr(config, section))} | set(options)
    values = {
        name: choice.values for name, choice in space.items() if name in own and isinstance(choice, Values)
    }
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def prepare_sweep(
    config: SweepConfig, loaded: Loaded, out: Path, concurrent: int
) -> tuple[TrialInputs, dict[str, str]]:
    """Prepare what all trials share, and release the models in `loaded`.

    Args:
        out: folder of the sweep.
        concurrent: number of trials at a time.

    Returns:
        The inputs that all trials share; and `prompts_key` -> a digest that is equal for equal anchors.

    Raises:
        InputError: an input cannot be used.
    """
    # Before building the cache, which may take hours: this checks that the labels match the classes.
    students = _students(config, loaded)
    base = _base(config, _caches(config, loaded, out), out, concurrent)
    cached = replace(loaded.inputs.data, shards=list_sources(base), manifests=read_manifests(base.data))
    for student in loaded.students.values():
        terms, vision = with_all_terms(base, loaded.space), loaded.inputs.vision_teachers
        data = with_views(terms, cached, loaded.inputs.teachers, student, vision)
    if "templates" not in loaded.space:
        check_templates(base, replace(loaded.inputs, data=data), out.parent / "anchors")
    prompts = [applied(base, settings).prompts for settings in _partial(loaded.space, base, ("prompts",))]
    anchors = {
        prompts_key(each): anchors_of(replace(base, prompts=each), loaded.inputs, out.parent / "anchors")
        for each in prompts
    }
    shared = TrialInputs(
        base=base,
        images=TrainingData(data.shards, data.manifests[0].image_size),
        students=students,
        anchors={key: (ray.put(used), ray.put(own)) for key, (used, own) in anchors.items()},
        vision_widths=tuple(teacher.width for teacher in loaded.inputs.vision_teachers),
        num_classes=len(data.classes),
        checkpoints=checkpoint_address(config.checkpoint.checkpoints, out),
        scores=config.search.scores,
        temperature=SCORING_TEMPERATURE,
    )
    loaded.inputs.teachers.clear()
    loaded.students.clear()
    trim_heap()
    return shared, {key: _digest(used) for key, (used, _) in anchors.items()}


def _caches(config: SweepConfig, loaded: Loaded, out: Path) -> tuple[str, ...]:
    """Return the addresses of the teacher caches: the data, or one each, built now or by an earlier start."""
    if loaded.inputs.data.manifests:
        return config.data
    # Beside the checkpoints, where these are in a place that all nodes reach.
    elsewhere = config.checkpoint.checkpoints or stored_run(out)
    root = posixpath.join(elsewhere, CACHE) if elsewhere else str((out / CACHE).resolve())
    if len(config.data) == 1:
        return (_cache(config, loaded, config.data[0], root),)
    return tuple(
        _cache(config, loaded, data, posixpath.join(root, f"{number}-{posixpath.basename(data.rstrip('/'))}"))
        for number, data in enumerate(config.data)
    )


def _cache(config: SweepConfig, loaded: Loaded, data: str, address: str) -> str:
    """Build the teacher cache of a data set unless it is there; return its address."""
    if not is_cache(address) or read_manifest(address).samples is None:
        inputs = loaded.inputs
        sizes = [
            needed_size(inputs.teachers, student, inputs.vision_teachers)
            for student in loaded.students.values()
        ]
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = replace(config.workers, num_workers=max(1, gpus if config.workers.use_gpu else 1))
        build_cache(
            EmbedConfig(
                data=data,
                teacher=config.teacher,
                more_teachers=config.more_teachers,
                vision_teachers=config.vision_teachers,
                vision_image_size=config.vision_image_size,
                out=address,
                augmentations=config.search.augmentations,
                image_size=max(sizes),
                seed=config.seed,
                teacher_precision=config.teacher_precision,
                augmentation=config.augmentation,
                allow_missing_shards=config.stream.allow_missing_shards,
                workers=replace(workers, gpus_per_worker=1.0),
                tracking=replace(config.tracking, run_name=dataset_name(address), system_metrics=False),
            )
        )
    return address


def _base(config: SweepConfig, data: tuple[str, ...], out: Path, concurrent: int) -> DistillConfig:
    """Return the distillation whose options the trials vary, and from which best.yaml is made."""
    values = {item.name: getattr(config, item.name) for item in fields(DistillConfig)}
    threads = config.workers.threads_per_worker
    if threads is None and not config.workers.use_gpu:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        threads = max(1, cpus // (concurrent * config.workers.most_workers))
    return replace(
        DistillConfig(**values),
        data=data,
        out=None,
        resume=None,
        config=None,
        workers=replace(config.workers, threads_per_worker=threads),
    )


def _students(config: SweepConfig, loaded: Loaded) -> dict[str, tuple[Any, Any]]:
    """Return references to each student and its held-out images, decoded once for each preprocessing."""
    held_out: dict[str, Any] = {}
    students = {}
    scoring = config.scoring
    address, column = str(scoring.eval_data), scoring.label_column
    ids = label_ids(loaded.inputs.data.classes, address, column)
    for key, clip in loaded.students.items():
        preparation = json.dumps({**clip.preprocess_cfg, "mean": None, "std": None}, default=str)
        if preparation not in held_out:
            images = load_held_out(
                clip,
                address,
                ids,
                column,
                config.search.scored_images,
                allow_missing=config.stream.allow_missing_shards,
            )
            text = f"{plural(len(images.labels), 'image')} of {clip.image_size} px, decoded once"
            lost = sum(images.skipped.values())
            print_stage("held out", text, f"{lost:,} skipped" if lost else "")
            held_out[preparation] = ray.put(images)
        students[key] = (ray.put(clip.image_tower), held_out[preparation])
    return students


def _digest(anchors: list[Anchors]) -> str:
    digest = hashlib.sha256()
    for each in anchors:
        digest.update(each.embeddings.numpy().tobytes())
        digest.update(each.class_index.numpy().tobytes())
    return digest.hexdigest()
