"""Try settings of a distillation: one teacher cache, one set of anchors for each setting of the prompts."""

import contextlib
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import fsspec
import ray

from beamclip.cluster import ray_session
from beamclip.commands.console import ProgressLine, clock, count, percent, stage, table
from beamclip.commands.context_sources import check_contexts
from beamclip.commands.distill import (
    Inputs,
    anchors_of,
    cached_views,
    check_options,
    load_inputs,
    needed_size,
)
from beamclip.commands.embed import build_cache
from beamclip.commands.run_dir import (
    CONFIG_FILE,
    PLOTS,
    checkpoint_address,
    new_run_dir,
    remember_tracked_run,
    tracked_run_id,
)
from beamclip.commands.scoring import SCORING_TEMPERATURE
from beamclip.commands.train import Recorder, check_batches, tracked
from beamclip.config import DistillConfig, EmbedConfig, SweepConfig, parameters, write_config
from beamclip.data.cache import finished_manifest, is_cache, read_manifest
from beamclip.data.shards import list_shards
from beamclip.errors import InputError
from beamclip.evaluation.encode import load_held_out
from beamclip.models.clip import LoadedClip
from beamclip.models.student import build_student
from beamclip.prompts.anchors import Anchors, PromptConfig
from beamclip.summary import Counts, Status, Summary, write_summary
from beamclip.sweep.report import BEST_FILE, TRIALS_FILE, best_of, table_rows, write_report
from beamclip.sweep.run_trial import Report, Shared, prompts_key, student_key, trial_checkpoints
from beamclip.sweep.search import DEFAULT_TRIALS
from beamclip.sweep.space import (
    Settings,
    Space,
    Values,
    applied,
    combinations,
    drawn,
    grid,
    in_words,
    parse_space,
    shown,
)
from beamclip.sweep.trial import Score, Trial, read_trials, trial_dir, write_trial
from beamclip.sweep.tuning import Advisor, Suggestions, resources, run_trials, tune_environment
from beamclip.tracking import Tracking
from beamclip.tracking.store import tracking_uri
from beamclip.training.checkpoint import check_writable
from beamclip.training.distillation import Images
from beamclip.training.launch import TrainingError, interrupts
from beamclip.training.process import hand_back_freed_memory

CACHE = "cache"


@dataclass(frozen=True)
class Loaded:
    """What the flags of a sweep name, loaded and checked."""

    inputs: Inputs
    space: Space
    students: dict[str, LoadedClip]
    """By `student_key`."""


def sweep(config: SweepConfig) -> Summary:
    """Run a sweep, or what is left of it, and leave its report.

    Raises:
        InputError: something that was given cannot be used.
        TrainingError: no trial came to a score.
        KeyboardInterrupt: somebody pressed Ctrl-C; there is a report of what was done.
    """
    began = time.perf_counter()
    out = new_run_dir(config.out, "sweep")
    loaded = _load(config)
    _open_sweep_dir(config, out)
    workers = config.workers
    with (
        ray_session(tune_environment(workers), dashboard=workers.num_workers > 1),
        tracked(config, out, "sweep") as tracking,
    ):
        concurrent = _trials_at_once(config, _wanted(config, loaded.space))
        shared, trials, advisor = _prepared(config, loaded, out, concurrent)
        suggestions = _suggestions(config, trials, advisor)
        watch = _Watch(out, config, shared, tracking, trials, len(suggestions))
        text = f"{count(len(suggestions), 'trial')}, {concurrent} at a time, {_threads(shared)}"
        stage("trials", text, _done_before(trials))
        with interrupts() as interrupted, watch.watching(interrupted):
            if len(suggestions):
                run_trials(shared, suggestions, config.search, concurrent, watch, interrupted)
        summary = _leave_report(
            config, loaded.space, shared, out, tracking, began=began, interrupted=interrupted.is_set()
        )
    _show(out, loaded.space, summary)
    if summary.status == "interrupted":
        raise KeyboardInterrupt(f"what was done is in {out}/{TRIALS_FILE}; go on with --resume {out}")
    if summary.status == "failed":
        problems = [trial.problem for trial in read_trials(out).values() if trial.problem]
        raise TrainingError(f"no trial came to a score. First: {problems[0] if problems else 'none was run'}")
    return summary


def _load(config: SweepConfig) -> Loaded:
    """Load everything that can be wrong before anything is started."""
    check_options(config)
    if config.classes is None or config.scoring.eval_data is None:
        missing = "--classes FILE" if config.classes is None else "--eval-data LABELLED"
        raise InputError(f"{missing} is missing: trials are compared by zero-shot scores on held-out images.")
    space = parse_space(config.search.vary, config)
    if config.search.grid:
        grid(space)
    for name, choice in space.items():
        values = choice.values if isinstance(choice, Values) else (choice.low, choice.high)
        for value in values:
            check_options(applied(config, {name: value}))
    inputs = load_inputs(config)
    # The cache brings what they see.
    inputs.image_towers.clear()
    for settings in _partial(space, config, ("stream", "optim")):
        check_batches(applied(config, settings), inputs.shards)
    for settings in _partial(space, config, ("prompts",)):
        check_contexts(inputs.classes, applied(config, settings).prompts, config.data)
    students = {}
    for settings in _partial(space, config, ("student",), ("seed",)):
        changed = applied(config, settings)
        student = build_student(changed.student, inputs.teachers[0], changed.seed)
        if inputs.manifest is not None:
            cached_views(changed, inputs.manifest, inputs.teachers, student)
        students[student_key(changed.student, changed.seed)] = student
    tried = " x ".join(f"{name} ({_extent(choice)})" for name, choice in space.items())
    total = combinations(space)
    stage("space", tried, f"{count(total, 'combination')}" if total else "")
    return Loaded(inputs, space, students)


def _extent(choice: Any) -> str:
    if isinstance(choice, Values):
        return ", ".join(map(shown, choice.values))
    return f"{choice.low:g} to {choice.high:g}"


def _partial(
    space: Space, config: DistillConfig, sections: tuple[str, ...], options: tuple[str, ...] = ()
) -> Iterator[Settings]:
    """Every combination of the values of those options that belong to these sections."""
    own = {item.name for section in sections for item in fields(getattr(config, section))} | set(options)
    values = {
        name: choice.values for name, choice in space.items() if name in own and isinstance(choice, Values)
    }
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _open_sweep_dir(config: SweepConfig, out: Path) -> None:
    try:
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror}). Give another.") from error
    check_writable(_checkpoints(config, out))
    if config.resume is None and read_trials(out):
        raise InputError(
            f"--out {out}: holds a sweep. Go on with it by --resume {out}, or give another --out."
        )
    write_config(config, out / CONFIG_FILE)


def _checkpoints(config: SweepConfig, out: Path) -> str:
    return checkpoint_address(config.checkpoint.checkpoints, out)


def _wanted(config: SweepConfig, space: Space) -> int:
    """Trials that are asked for, as far as the space has them."""
    total = combinations(space)
    if config.search.grid and total is not None:
        return total
    trials = config.search.trials or DEFAULT_TRIALS
    return trials if total is None or config.search.optuna else min(trials, total)


def _trials_at_once(config: SweepConfig, wanted: int) -> int:
    """How many trials run at a time.

    Raises:
        InputError: they would leave no CPU to read data with, or there are fewer GPUs.
    """
    workers = config.workers
    cluster = ray.cluster_resources()
    outer = resources(workers)["CPU"] if workers.num_workers > 1 else 0.0
    cpus = outer + workers.num_workers * workers.cpus_per_worker
    room = [int((cluster.get("CPU", 0.0) - 1) / cpus)] if cpus else []
    share = workers.num_workers * workers.gpus_per_worker
    room += [int(cluster.get("GPU", 0.0) / share)] if workers.use_gpu else []
    most = min(room, default=wanted)
    asked = config.search.max_concurrent
    if most < (asked or 1) and "RAY_ADDRESS" not in os.environ:
        gpus = f" and {share:g} of {cluster.get('GPU', 0):g} GPUs" if workers.use_gpu else ""
        raise InputError(
            f"--max-concurrent {asked or 1}: {count(asked or 1, 'trial')}, each with {cpus:g} of "
            f"{cluster.get('CPU', 0):g} CPUs{gpus}, of which Ray Data needs 1 CPU to read. "
            + (
                f"Give {most} or less."
                if most
                else "Lower --cpus-per-worker, --num-workers or --gpus-per-worker."
            )
        )
    # On CPUs, a trial computes in one thread at least.
    full = most if workers.use_gpu else min(most, int(cluster.get("CPU", 1.0)) // workers.num_workers)
    return asked or max(1, min(full, wanted))


def _prepared(
    config: SweepConfig, loaded: Loaded, out: Path, concurrent: int
) -> tuple[Shared, dict[int, Trial], Advisor | None]:
    """All that is made once for all trials; and those trials that are known before the first one runs."""
    data = _cache(config, loaded, out)
    base = _base(config, data, out, concurrent)
    cached = replace(loaded.inputs, manifest=finished_manifest(data), shards=list_shards(data))
    assert cached.manifest is not None
    views = [cached_views(base, cached.manifest, cached.teachers, clip) for clip in loaded.students.values()]
    prompts = [applied(base, settings).prompts for settings in _partial(loaded.space, base, ("prompts",))]
    anchors = {
        prompts_key(each): anchors_of(replace(base, prompts=each), loaded.inputs, out.parent / "anchors")
        for each in prompts
    }
    shared = Shared(
        base=base,
        images=Images(cached.shards, views[0], cached.manifest.image_size),
        students=_students(config, loaded),
        anchors={key: (ray.put(used), ray.put(own)) for key, (used, own) in anchors.items()},
        num_classes=len(cached.classes),
        checkpoints=_checkpoints(config, out),
        scores=config.search.scores,
        temperature=SCORING_TEMPERATURE,
    )
    trials = read_trials(out)
    if not trials and not config.search.optuna:
        same = {key: _digest(used) for key, (used, _) in anchors.items()}
        listed = _distinct(_listed(config, loaded.space), base, same)
        trials = {number: Trial(number, settings) for number, settings in enumerate(listed)}
        for trial in trials.values():
            write_trial(out, trial)
    advisor = None
    if config.search.optuna:
        advisor = Advisor(loaded.space, config.seed, [trial for trial in trials.values() if trial.done])
    loaded.inputs.teachers.clear()
    loaded.students.clear()
    hand_back_freed_memory()
    return shared, trials, advisor


def _cache(config: SweepConfig, loaded: Loaded, out: Path) -> str:
    """The teacher cache: the data themselves, or one that is built of them, or was by an earlier start."""
    if loaded.inputs.manifest is not None:
        return str(config.data)
    address = str((out / CACHE).resolve())
    if not is_cache(address) or read_manifest(address).samples is None:
        sizes = [needed_size(loaded.inputs.teachers, student) for student in loaded.students.values()]
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = replace(config.workers, num_workers=max(1, gpus if config.workers.use_gpu else 1))
        build_cache(
            EmbedConfig(
                data=config.data,
                teacher=config.teacher,
                more_teachers=config.more_teachers,
                out=address,
                augmentations=config.search.augmentations,
                image_size=max(sizes),
                seed=config.seed,
                teacher_precision=config.teacher_precision,
                augmentation=config.augmentation,
                workers=replace(workers, gpus_per_worker=1.0),
            )
        )
    return address


def _base(config: SweepConfig, data: str, out: Path, concurrent: int) -> DistillConfig:
    """What trials change, and best.yaml holds: a distillation that can be run from anywhere."""
    values = {item.name: getattr(config, item.name) for item in fields(DistillConfig)}
    distillation = DistillConfig(**values)
    threads = config.workers.threads_per_worker
    if threads is None and not config.workers.use_gpu:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        threads = max(1, cpus // (concurrent * config.workers.num_workers))
    return replace(
        distillation,
        data=_absolute(data),
        teacher=_absolute(str(config.teacher)),
        more_teachers=tuple(_absolute(address) for address in config.more_teachers),
        classes=Path(_absolute(str(config.classes))),
        out=None,
        resume=None,
        config=None,
        prompts=replace(
            config.prompts,
            context_data=config.prompts.context_data and _absolute(config.prompts.context_data),
        ),
        scoring=replace(config.scoring, eval_data=_absolute(str(config.scoring.eval_data))),
        workers=replace(config.workers, threads_per_worker=threads),
    )


def _absolute(address: str) -> str:
    """A path that holds in any folder; other addresses as they are."""
    path = Path(address).expanduser()
    return str(path.resolve()) if path.exists() else address


def _students(config: SweepConfig, loaded: Loaded) -> dict[str, tuple[Any, Any]]:
    """The students and, once for each way to prepare them, the held-out images."""
    held_out: dict[str, Any] = {}
    students = {}
    scoring = config.scoring
    ids = [entry.id for entry in loaded.inputs.classes]
    for key, clip in loaded.students.items():
        preparation = json.dumps({**clip.preprocess_cfg, "mean": None, "std": None}, default=str)
        if preparation not in held_out:
            images = load_held_out(
                clip, str(scoring.eval_data), ids, scoring.label_column, config.search.scored_images
            )
            text = f"{count(len(images.labels), 'image')} of {clip.image_size} px, decoded once"
            lost = sum(images.skipped.values())
            stage("held out", text, f"{lost:,} skipped" if lost else "")
            held_out[preparation] = ray.put(images)
        students[key] = (ray.put(clip.image_tower), held_out[preparation])
    return students


def _listed(config: SweepConfig, space: Space) -> list[Settings]:
    if config.search.grid:
        return grid(space)
    return drawn(space, config.search.trials or DEFAULT_TRIALS, config.seed)


def _digest(anchors: list[Anchors]) -> str:
    digest = hashlib.sha256()
    for each in anchors:
        digest.update(each.embeddings.numpy().tobytes())
    return digest.hexdigest()


def _distinct(listed: list[Settings], base: DistillConfig, same: dict[str, str]) -> list[Settings]:
    """Settings without those that mean the same as others: one prompt a class is its own mean, and so on.

    Args:
        same: `prompts_key` -> what is equal for equal anchors.
    """
    found: dict[str, Settings] = {}
    for settings in listed:
        config = applied(base, settings)
        meaning = replace(config, prompts=PromptConfig(context_source=same[prompts_key(config.prompts)]))
        found.setdefault(json.dumps(parameters(meaning), default=str), settings)
    if len(found) < len(listed):
        left = len(listed) - len(found)
        stage("equal", f"{count(left, 'combination')} with the anchors of another one", "left out")
    return list(found.values())


def _suggestions(config: SweepConfig, trials: dict[int, Trial], advisor: Advisor | None) -> Suggestions:
    left = [trial for trial in trials.values() if not trial.done]
    numbers = range(len(trials), config.search.trials or DEFAULT_TRIALS) if advisor else ()
    return Suggestions(left, advisor, numbers)


def _threads(shared: Shared) -> str:
    workers = shared.base.workers
    if workers.use_gpu:
        return f"{workers.num_workers * workers.gpus_per_worker:g} GPUs each"
    own = f"{count(workers.threads_per_worker or 1, 'thread')} each"
    return own if workers.num_workers == 1 else f"{workers.num_workers} workers each, {own}"


def _done_before(trials: dict[int, Trial]) -> str:
    done = sum(trial.done for trial in trials.values())
    return f"{done} done before" if done else ""


class _Watch:
    """Hears what becomes of the trials: writes it down, tells MLflow, shows it. See tuning.Listener."""

    def __init__(
        self,
        out: Path,
        config: SweepConfig,
        shared: Shared,
        parent: Tracking,
        trials: dict[int, Trial],
        wanted: int,
    ) -> None:
        self.out = out
        self.config = config
        self.shared = shared
        self.parent = parent
        self.trials = trials
        self.left = wanted
        self.recorders: dict[int, Recorder] = {}
        self.interrupted = threading.Event()
        self.line = ProgressLine()

    @contextlib.contextmanager
    def watching(self, interrupted: threading.Event) -> Iterator[None]:
        """Trials that are under way when this is left are marked as interrupted in MLflow."""
        self.interrupted = interrupted
        try:
            yield
        finally:
            self.line.close()
            for number in [*self.recorders]:
                self.recorders.pop(number).tracking.close("KILLED")
            self._clear()

    def started(self, number: int, settings: Settings) -> None:
        known = self.trials.get(number, Trial(number, settings))
        self._note(replace(known, status="running", problem=None))
        if number not in self.recorders:
            self.recorders[number] = self._recorder(number, settings)
        self._show()

    def reported(self, number: int, report: Report) -> None:
        trial = self.trials[number]
        if "problem" in report:
            self._note(replace(trial, problem=report["problem"]))
            return
        for record in report["records"]:
            if "started_at" in record:
                self.recorders[number].rewind(record["started_at"])
            elif "loss" in record:
                self.recorders[number].keep(record)
        score = Score(report["step"], report["zeroshot_top1"], report["zeroshot_top5"])
        before = tuple(each for each in trial.scores if each.step < score.step)
        self._note(
            replace(
                trial, scores=(*before, score), steps=report["steps"], seconds=report["seconds"], problem=None
            )
        )
        metrics = {"zeroshot_top1": score.zeroshot_top1, "zeroshot_top5": score.zeroshot_top5}
        self.recorders[number].tracking.log([{"step": score.step, **metrics}])
        self._show()

    def ended(self, number: int, problem: str | None) -> None:
        trial = self.trials[number]
        if self.interrupted.is_set() and trial.step < max(1, trial.steps):
            return
        problem = problem or trial.problem
        ended = "finished" if trial.step == trial.steps else "stopped"
        trial = replace(trial, status="failed" if problem else ended, problem=problem)  # type: ignore[arg-type]
        self._note(trial)
        self.left -= 1
        tracking = self.recorders.pop(number).tracking
        tracking.artifact(trial_dir(self.out, number) / CONFIG_FILE)
        tracking.close("FAILED" if problem else "FINISHED")
        self._clear()
        self.line.close()
        said = f"failed: {problem}" if problem else in_words(trial.settings)
        note = "" if problem else percent(trial.score or 0.0)
        stage(f"trial {trial.name}", said, note if trial.status != "stopped" else f"{note}, stopped")
        best = best_of([*self.trials.values()])
        if best is not None:
            done = sum(each.done for each in self.trials.values())
            self.parent.log([{"step": done, "best_zeroshot_top1": best.score or 0.0}])
        self._show()

    def _note(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        write_trial(self.out, trial)

    def _recorder(self, number: int, settings: Settings) -> Recorder:
        """A folder, and an MLflow run below that of the sweep."""
        folder = trial_dir(self.out, number)
        config = applied(self.shared.base, settings)
        write_config(config, folder / CONFIG_FILE)
        parent = {"mlflow.parentRunId": self.parent.run_id} if self.parent.run_id else {}
        name = f"{self.out.resolve().name}/{number:03d}"
        tracking = Tracking.start(
            replace(self.config.tracking, run_name=name, system_metrics=False),
            run_dir=folder,
            params=parameters(config),
            tags={"command": "trial", **parent},
            run_id=tracked_run_id(folder),
            uri=tracking_uri(self.out),
        )
        remember_tracked_run(folder, tracking.run_id)
        return Recorder(folder, tracking)

    def _clear(self) -> None:
        """Remove the checkpoints of trials that have no more use for them.

        One that was stopped may still be writing its last: what is left now is found at the next trial's end.
        """
        for trial in self.trials.values():
            if trial.done:
                fs, path = fsspec.core.url_to_fs(trial_checkpoints(self.shared.checkpoints, trial.number))
                with contextlib.suppress(OSError):
                    fs.rm(path, recursive=True)

    def _show(self) -> None:
        best = best_of([*self.trials.values()])
        text = f"{count(self.left, 'trial')} to go, {len(self.recorders)} running"
        self.line.show(f"{text}  best {percent(best.score or 0.0)} (trial {best.name})" if best else text)


def _leave_report(
    config: SweepConfig,
    space: Space,
    shared: Shared,
    out: Path,
    tracking: Tracking,
    *,
    began: float,
    interrupted: bool,
) -> Summary:
    """Write what there is to say about the trials, here and in MLflow."""
    trials = [*read_trials(out).values()]
    for path in write_report(out, trials, space, shared.base):
        tracking.artifact(path, PLOTS if path.parent.name == PLOTS else None)
    best = best_of(trials)
    status: Status = "interrupted" if interrupted else "finished" if best else "failed"
    by_status = {
        name: sum(trial.status == name for trial in trials)
        for name in ("finished", "stopped", "failed", "running", "waiting")
    }
    failed = {trial.problem or "": 0 for trial in trials if trial.status == "failed"}
    summary = Summary(
        command="sweep",
        status=status,
        wall_seconds=time.perf_counter() - began,
        metrics={
            "zeroshot_top1": best.scores[-1].zeroshot_top1,
            "zeroshot_top5": best.scores[-1].zeroshot_top5,
        }
        if best
        else {},
        counts=Counts(
            attempted=len(trials),
            succeeded=by_status["finished"] + by_status["stopped"],
            failed={
                problem: sum(trial.problem == problem for trial in trials if trial.status == "failed")
                for problem in failed
            },
        ),
        mlflow_run_id=tracking.run_id,
        paths={"trials": TRIALS_FILE, "best": BEST_FILE, "plots": PLOTS},
        stages={**by_status, "best": best.settings if best else None},
    )
    tracking.artifact(write_summary(out, summary))
    done = by_status["finished"] + by_status["stopped"]
    tracking.log([{"step": done, **{name: value or 0.0 for name, value in summary.metrics.items()}}])
    return summary


def _show(out: Path, space: Space, summary: Summary) -> None:
    trials = [*read_trials(out).values()]
    if not trials:
        return
    print()
    table(table_rows(trials, space))
    said = ", ".join(
        f"{number} {name}" for name, number in summary.stages.items() if number and name != "best"
    )
    print(f"\n{count(len(trials), 'trial')}: {said}; {clock(summary.wall_seconds)}")
    best = best_of(trials)
    if best is not None:
        print(f"best: {in_words(best.settings)}")
        print(f"python pipelines/distill.py --config {out / BEST_FILE} --out RUN")
    print(f"{out}: {TRIALS_FILE}  {BEST_FILE}  {PLOTS}/  summary.json")
