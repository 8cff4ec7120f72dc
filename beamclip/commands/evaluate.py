"""Score a model on one data set or several: every figure with an interval, and beside other runs if asked."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from beamclip.cluster.nodes import SharedPlaces, ask_cluster, some_files
from beamclip.cluster.room import check_resources
from beamclip.cluster.session import workers_session
from beamclip.commands.class_list import ClassList, check_labels, class_list
from beamclip.commands.comparing import Lines, baseline_lines, compare, effective_robustness, read_other
from beamclip.commands.console import print_stage
from beamclip.commands.contexts import check_contexts, refuse_one_class
from beamclip.commands.data_set_scores import (
    CLASS_TASKS,
    FIT_TASKS,
    TASKS,
    DataSetScores,
    Evaluator,
    named,
    score_data_set,
)
from beamclip.commands.effects import effective_parameters
from beamclip.commands.evaluation_folder import clear_earlier
from beamclip.commands.evaluation_pictures import draw_evaluation
from beamclip.commands.figures import show_figures
from beamclip.commands.lineage import labelled_dataset, model_ref
from beamclip.commands.options import EvaluateConfig, Task
from beamclip.commands.report import write_summary_and_report
from beamclip.config import write_config
from beamclip.data.listing import check_texts, list_labelled, list_shards, split_address
from beamclip.data.shards import Columns, Shard
from beamclip.data.torchvision_sets import is_torchvision
from beamclip.errors import InputError
from beamclip.evaluation.intervals import Figure, ends
from beamclip.evaluation.results import Scores, write_scores
from beamclip.evaluation.scores import worst_classes
from beamclip.models.clip import load_clip
from beamclip.option_texts import check_required
from beamclip.prompts.classes import load_classes
from beamclip.runs.folder import (
    CLASSES_FILE,
    CONFIG_FILE,
    PLOTS,
    REPORT,
    check_own,
    make_run_dir,
    new_run_dir,
)
from beamclip.spelling import or_list
from beamclip.summary import SUMMARY_FILE, Counts, Summary, write_summary
from beamclip.tracking import Tracking


@dataclass(frozen=True)
class _Plan:
    """What an evaluation will do, as far as it is known before a model is loaded."""

    config: EvaluateConfig
    """With the addresses of splits in place of those of the folders that hold them."""
    tasks: tuple[str, ...]
    data: dict[str, str]
    """Name -> address; the one name is "" where there is one data set."""
    classes: ClassList
    """Without entries where only retrieval runs."""
    others: Mapping[str, Scores]
    """Scores of the run of --against, by data set; empty without it."""
    lines: Lines
    """Of --baseline; empty without it."""


def evaluate(config: EvaluateConfig) -> Summary:
    """Run the given tasks; write, log and print their figures.

    Raises:
        InputError: an option, a file or the data cannot be used as given.
    """
    began = time.perf_counter()
    plan = _planned(config)
    config = plan.config
    run_dir = new_run_dir(config.out, "evaluate")
    evaluator = _evaluator(plan, run_dir.parent / "anchors")
    used = replace(config, prompts=evaluator.prompts) if "zeroshot" in plan.tasks else config
    make_run_dir(run_dir)
    clear_earlier(run_dir)
    write_config(used, run_dir / CONFIG_FILE)
    with (
        workers_session(config.workers),
        Tracking.start(
            config.tracking, run_dir=run_dir, params=effective_parameters(used), tags={"command": "evaluate"}
        ) as tracking,
    ):
        check_resources(config.workers)
        found = _scored(evaluator, plan.data, run_dir)
        summary = _summary(found, began, tracking.run_id)
        # It stays, whatever fails from here on.
        write_summary(run_dir, summary)
        summary = _held_against(plan, found, summary)
        draw_evaluation(evaluator, plan.data, found, run_dir / PLOTS)
        summary = write_summary_and_report(
            run_dir, replace(summary, wall_seconds=time.perf_counter() - began)
        )
        _log(tracking, evaluator, plan, summary)
        for file in _written(run_dir):
            tracking.artifact(file, PLOTS if file.is_dir() else None)
    for reason, number in sorted(summary.counts.skipped.items()):
        print_stage("skipped", f"{number:,} {reason}")
    show_figures(summary)
    names = (f"{file.name}/" if file.is_dir() else file.name for file in _written(run_dir))
    print(f"{run_dir}: {'  '.join(names)}")
    return summary


def _evaluator(plan: _Plan, cache: Path) -> Evaluator:
    config = plan.config
    return Evaluator(
        config,
        plan.tasks,
        load_clip(str(config.model)),
        load_clip(str(config.teacher)) if "agreement" in plan.tasks else None,
        plan.classes.entries,
        cache,
        plan.classes.templates,
    )


def _scored(evaluator: Evaluator, data: Mapping[str, str], run_dir: Path) -> dict[str, DataSetScores]:
    """Score all data sets, and write the tables of each when it is done."""
    found: dict[str, DataSetScores] = {}
    for name, address in data.items():
        scored = score_data_set(evaluator, address)
        write_scores(run_dir, scored.scores, name)
        # Pictures are of the first data set, and embeddings of all may not fit into memory.
        found[name] = replace(scored, retrieved=None) if found else scored
    return found


def _held_against(plan: _Plan, found: dict[str, DataSetScores], summary: Summary) -> Summary:
    """Add to the summary what other evaluations say of this one."""
    config, stages = plan.config, dict(summary.stages)
    figures: dict[str, Figure] = {}
    if config.against:
        stages["against"] = compare(config.against, plan.others, found)
    if config.baseline:
        robust = effective_robustness(config.baseline, plan.lines, found)
        stages["robustness"], figures = robust.facts, robust.figures
    return replace(
        summary,
        metrics={**summary.metrics, **{name: each.value for name, each in figures.items()}},
        intervals={**summary.intervals, **{name: each.interval for name, each in figures.items()}},
        stages=stages,
    )


def _written(run_dir: Path) -> list[Path]:
    """Return what an evaluation left in its folder: the report, the summary, the tables, the pictures."""
    tables = sorted(run_dir.glob("*.parquet"))
    kept = (run_dir / REPORT, run_dir / SUMMARY_FILE, *tables, run_dir / PLOTS)
    return [path for path in kept if path.exists()]


def _log(tracking: Tracking, evaluator: Evaluator, plan: _Plan, summary: Summary) -> None:
    """Log the scores, which are also those of the model on each data set, whichever run made it."""
    config = evaluator.config
    model, *teacher = (
        model_ref(clip.address, clip.fingerprint) for clip in (evaluator.clip, evaluator.teacher) if clip
    )
    labels, missing = config.label_column, config.allow_missing_shards
    scored = {
        name: labelled_dataset(address, "test", labels, allow_missing=missing)
        for name, address in plan.data.items()
    }
    fitted = labelled_dataset(config.train_data, "training", labels, allow_missing=missing)
    tracking.inputs(datasets=[each for each in (*scored.values(), fitted) if each], models=[model, *teacher])
    left = {key: value for key, value in summary.metrics.items() if value is not None}
    intervals = summary.intervals
    for name, dataset in scored.items():
        own = {key: left.pop(key) for key in [*left] if not name or key.startswith(f"{name}/")}
        record = {**own, **ends({key: both for key, both in intervals.items() if key in own})}
        tracking.log([{"step": 0, **record}], model=model, dataset=dataset)
    rest = {key: both for key, both in intervals.items() if key in left}
    tracking.log([{"step": 0, **left, **ends(rest)}])


def _planned(config: EvaluateConfig) -> _Plan:
    """Check what can be checked before the model is loaded.

    Raises:
        InputError: see `evaluate`.
    """
    check_required(config)
    config = _with_splits(config)
    classes = _classes(config)
    tasks = _tasks(config, classes)
    config = replace(config, tasks=tasks)
    data = dict(zip(_names(config.data), config.data, strict=True))
    _check_needs(config, tasks, classes)
    if config.out is not None:
        check_own(config.out, {"tasks", "model", "against"})
    _check_places(config, tasks)
    others = read_other(config.against, [*data]) if config.against is not None else {}
    lines = baseline_lines(config.baseline, [*data], tasks) if config.baseline else {}
    if not set(tasks) & set(CLASS_TASKS):
        return _Plan(config, tasks, data, ClassList([]), others, lines)
    refuse_one_class(classes.entries)
    for address in (*config.data, *_fitted_on(config)):
        check_labels(classes.entries, address, config.label_column, listed=config.classes is not None)
    if {"zeroshot", "agreement"} & set(tasks):
        check_contexts(
            classes.entries, config.prompts, config.data, allow_missing=config.allow_missing_shards
        )
    return _Plan(config, tasks, data, classes, others, lines)


def _fitted_on(config: EvaluateConfig) -> tuple[str, ...]:
    """The training images, if a task of the plan reads them."""
    return (config.train_data,) if config.train_data and FIT_TASKS & set(config.tasks) else ()


def _with_splits(config: EvaluateConfig) -> EvaluateConfig:
    """Of folders with splits, score on `test` and fit on `train`."""
    data = tuple(split_address(address, "test") for address in config.data)
    train_data = config.train_data and split_address(config.train_data, "train")
    return replace(config, data=data, train_data=train_data)


def _classes(config: EvaluateConfig) -> ClassList:
    """The class list, or the classes that the first data set names, or those of the run."""
    if not set(config.tasks) & {"all", *CLASS_TASKS}:
        return ClassList([])
    found = class_list(config.classes, config.data[0], config.label_column)
    of_run = Path(str(config.model)) / CLASSES_FILE
    # With --tasks all, data without labels are not refused.
    if not found.entries and of_run.is_file() and "all" not in config.tasks:
        return replace(found, entries=load_classes(of_run))
    return found


def _tasks(config: EvaluateConfig, classes: ClassList) -> tuple[Task, ...]:
    """The tasks to run; `agreement` includes zero-shot, and `all` stands for what the options allow."""
    if not config.tasks:
        raise InputError(f"--tasks is empty. Give {or_list(['all', *TASKS])}.")
    asked = set(config.tasks)
    if "all" in asked:
        asked |= {"zeroshot"} if classes.entries else set()
        asked |= {"probe", "knn"} if classes.entries and config.train_data else set()
        asked |= {"agreement"} if classes.entries and config.teacher else set()
        listed = list_labelled if asked & {*CLASS_TASKS} else list_shards
        asked |= {"retrieval"} if all(map(partial(_has_captions, config, listed), config.data)) else set()
    if "agreement" in asked:
        asked |= {"zeroshot"}
    found = tuple(task for task in TASKS if task in asked)
    if not found:
        raise InputError("--tasks all: nothing to do. Give --classes, or data with captions.")
    return found


def _has_captions(config: EvaluateConfig, listed: Callable[..., list[Shard]], address: str) -> bool:
    columns = Columns(caption=True, more_texts=config.caption_columns)
    shards = listed(address, allow_missing=config.allow_missing_shards)
    try:
        check_texts(shards, columns, address)
    except InputError:
        if config.caption_columns:
            raise
        return False
    return True


def _check_needs(config: EvaluateConfig, tasks: tuple[str, ...], classes: ClassList) -> None:
    """Refuse options that a task cannot do without, and options that no task reads."""
    of_classes = [task for task in tasks if task in CLASS_TASKS]
    if of_classes and not classes.entries:
        raise InputError(
            f"--tasks {of_classes[0]} needs --classes, a class list whose ids are the labels: "
            f"{config.data[0]} does not name its classes."
        )
    for task in ("probe", "knn"):
        if task in tasks and config.train_data is None:
            used = "to fit the probe on" if task == "probe" else "to look for neighbours in"
            raise InputError(f"--tasks {task} needs --train-data. Give labelled images {used}.")
    if "agreement" in tasks and config.teacher is None:
        raise InputError("--tasks agreement needs --teacher. Give the model to agree with.")
    given = {
        "--teacher": (config.teacher, ("agreement",)),
        "--train-data": (config.train_data, ("probe", "knn")),
    }
    for option, (value, readers) in given.items():
        if value is not None and not {*readers} & {*tasks}:
            # --tasks all has left them out.
            cure = f"Add {or_list(readers)} to --tasks" if classes.entries else "Give --classes"
            raise InputError(
                f"{option} is read by --tasks {' and '.join(readers)} only. {cure}, or leave it out."
            )
    if config.baseline and len(config.data) < 2:
        raise InputError(
            "--baseline: there is one data set. Give two or more to --data, the ordinary one first."
        )


def _check_places(config: EvaluateConfig, tasks: tuple[str, ...]) -> None:
    """Have every node of a cluster look at the data, whose captions must be there if retrieval reads them."""
    read: list[tuple[str, str]] = []
    listed = list_labelled if set(tasks) & set(CLASS_TASKS) else list_shards
    paths: dict[str, set[str]] = {}
    train_data = _fitted_on(config)
    for option, addresses in (("--data", config.data), ("--train-data", train_data)):
        for address in addresses:
            shards = listed(address, allow_missing=config.allow_missing_shards)
            paths[address] = {shard.path for shard in shards}
            read += some_files(option, [shard.path for shard in shards])
            if option == "--data" and "retrieval" in tasks:
                check_texts(shards, Columns(caption=True, more_texts=config.caption_columns), address)
    for address in config.data:
        if any(paths[address] & paths[each] for each in train_data):
            raise InputError(
                f"--train-data {config.train_data}: holds images of --data {address}, which would be scored "
                "by themselves. Give other images to fit on."
            )
    ask_cluster(SharedPlaces(tuple(read)))


def _names(addresses: tuple[str, ...]) -> list[str]:
    """Name data sets after the last parts of their addresses, as many parts as tell them apart; one is ""."""
    if len(addresses) == 1:
        return [""]
    if len({address.rstrip("/") for address in addresses}) < len(addresses):
        raise InputError("--data names one data set twice. Leave one out.")
    places = [address.partition("?")[0] if is_torchvision(address) else address for address in addresses]
    parts = [[part for part in re.split(r"[/\\:]+", place) if part] for place in places]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [re.sub(r"[^\w.-]+", "_", "-".join(each[-depth:])) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}-{name}" for number, name in enumerate(names)]


def _stages(found: dict[str, DataSetScores]) -> dict[str, Any]:
    """What each data set leaves in the summary beside its figures; under its name if there are several."""
    of_each: dict[str, dict[str, Any]] = {}
    for name, each in found.items():
        of_each[name] = {"images": len(each.scores), **each.stages}
        if "zeroshot" in each.scores.ranks:
            of_each[name]["temperature"] = each.scores.facts.temperature
            of_each[name]["worst_classes"] = worst_classes(each.scores)
    return of_each.get("", {"data": of_each})


def _summary(found: dict[str, DataSetScores], began: float, run_id: str | None) -> Summary:
    images = sum(len(each.scores) for each in found.values())
    skipped = sum((Counter(each.skipped) for each in found.values()), Counter[str]())
    figures = {
        key: figure for name, each in found.items() for key, figure in named(name, each.figures).items()
    }
    return Summary(
        command="evaluate",
        status="finished",
        wall_seconds=time.perf_counter() - began,
        images=images,
        images_per_second=images / sum(each.seconds for each in found.values()),
        metrics={name: each.value for name, each in figures.items()},
        intervals={name: each.interval for name, each in figures.items()},
        counts=Counts(images + skipped.total(), images, skipped=dict(skipped)),
        mlflow_run_id=run_id,
        paths={"scores": " ".join(f"scores{'-' + name if name else ''}.parquet" for name in found)},
        stages=_stages(found),
    )
