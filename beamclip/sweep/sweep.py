"""Try settings of a distillation: trials share a teacher cache, and anchors for each prompt setting."""

import json
import time
from collections.abc import Mapping
from itertools import count, islice
from pathlib import Path

import ray
import ray.tune

from beamclip.cluster.session import cluster_address, forked_python, ray_session
from beamclip.commands.batches import show_chosen, sized
from beamclip.commands.console import format_duration, plural, print_stage, table
from beamclip.commands.distill_inputs import with_own_templates
from beamclip.commands.lineage import training_datasets
from beamclip.commands.options import DistillConfig, SweepConfig
from beamclip.commands.report import write_summary_and_report
from beamclip.commands.run import track_run
from beamclip.commands.search import DEFAULT_TRIALS
from beamclip.commands.sources import show_sources
from beamclip.config import portable, write_config
from beamclip.errors import InputError
from beamclip.runs.folder import CONFIG_FILE, PLOTS, REPORT, checkpoint_address, make_run_dir, new_run_dir
from beamclip.summary import SUMMARY_FILE, Counts, Status, Summary
from beamclip.sweep.monitor import SweepMonitor
from beamclip.sweep.prepare import load_sweep, prepare_sweep
from beamclip.sweep.report import BEST_FILE, TRIALS_FILE, best_of, table_rows, write_report
from beamclip.sweep.run_trial import TrialInputs, prompts_key, run_trial
from beamclip.sweep.space import Settings, Space, applied, combinations, drawn, grid, in_words
from beamclip.sweep.trial import Trial, read_trials, write_trial
from beamclip.sweep.tuning import OptunaSampler, TrialQueue, resources, run_trials, tune_environment
from beamclip.tracking import Tracking
from beamclip.training.checkpoint_store import check_writable
from beamclip.training.launch import interrupts
from beamclip.training.worker import TrainingError


def sweep(config: SweepConfig) -> Summary:
    """Run a sweep, or the rest of a resumed one, and write its report.

    Raises:
        InputError: an option or an input cannot be used.
        TrainingError: no trial was scored, or the data cannot be read any more.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped the sweep; the report covers what was done until then.
    """
    began = time.perf_counter()
    out = new_run_dir(config.out, "sweep")
    config = portable(config)
    loaded = load_sweep(config, out)
    given, config = config, sized(config, loaded.inputs.data.shards)
    show_chosen(given, config, loaded.inputs.data.shards)
    show_sources(config, loaded.inputs.data.shards)
    config = with_own_templates(config, loaded.inputs)
    _open_sweep_dir(config, loaded.space, out)
    workers = config.workers
    with (
        forked_python() as python,
        ray_session(tune_environment(workers), dashboard=workers.most_workers > 1, python=python),
        track_run(config, out, "sweep", cached=True, varied=loaded.space) as tracking,
    ):
        teachers = loaded.inputs.teacher_refs
        datasets = training_datasets(config, loaded.inputs.data.shards)
        tracking.inputs(datasets=datasets, models=teachers)
        concurrent = trials_at_once(config, _wanted(config, loaded.space), ray.cluster_resources())
        shared, meanings = prepare_sweep(config, loaded, out, concurrent)
        trials = _planned(config, loaded.space, shared.base, meanings, out)
        suggestions = _suggestions(config, loaded.space, trials)
        watch = SweepMonitor(out, config, shared, tracking, trials, len(suggestions))
        text = f"{plural(len(suggestions), 'trial')}, {concurrent} at a time, {_threads(shared)}"
        print_stage("trials", text if len(suggestions) else "none left to run", _done_before(trials))
        unread = None
        with interrupts() as interrupted, watch.watching(interrupted):
            if len(suggestions):
                body = ray.tune.with_parameters(run_trial, shared=shared)
                unread = run_trials(body, workers, suggestions, config.search, concurrent, watch, interrupted)
        ended: Status = "interrupted" if interrupted.is_set() else "failed" if unread else "finished"
        summary = _leave_report(config, loaded.space, shared, out, tracking, began=began, ended=ended)
        _show(out, loaded.space, summary)
        if summary.status == "interrupted":
            raise KeyboardInterrupt(f"results so far: {out}/{TRIALS_FILE}; continue with --resume {out}")
        if unread:
            raise TrainingError(f"the data cannot be read: {unread}. Continue with --resume {out}")
        if summary.status == "failed":
            problems = [trial.problem for trial in read_trials(out).values() if trial.problem]
            raise TrainingError(
                f"no trial was scored. First problem: {problems[0] if problems else 'none was run'}"
            )
    return summary


def _open_sweep_dir(config: SweepConfig, space: Space, out: Path) -> None:
    make_run_dir(out)
    make_run_dir(out / PLOTS)
    check_writable(checkpoint_address(config.checkpoint.checkpoints, out))
    if config.resume is None and read_trials(out):
        raise InputError(
            f"--out {out}: already holds a sweep. Continue it with --resume {out}, or give another --out."
        )
    for trial in read_trials(out).values():
        if set(trial.settings) != set(space):
            raise InputError(
                f"--resume {out}: its trials vary {', '.join(trial.settings)}, but --vary names "
                f"{', '.join(space)}. Leave --vary out, or start a new sweep."
            )
    write_config(config, out / CONFIG_FILE)


def _wanted(config: SweepConfig, space: Space) -> int:
    """Return the number of trials asked for, at most the number of combinations."""
    total = combinations(space)
    if config.search.grid and total is not None:
        return total
    trials = config.search.trials or DEFAULT_TRIALS
    return trials if total is None else min(trials, total)


def trials_at_once(config: SweepConfig, wanted: int, cluster: Mapping[str, float]) -> int:
    """Return how many trials run at a time.

    Args:
        wanted: number of trials in all.
        cluster: its resources, the numbers of "CPU" and "GPU".

    Raises:
        InputError: in a Ray that this command started, --max-concurrent trials (by default one) would leave
            no CPU to read data with, or need more GPUs than there are.
    """
    workers = config.workers
    outer = resources(workers)["CPU"] if workers.most_workers > 1 else 0.0
    cpus = outer + workers.most_workers * workers.worker_cpus
    room = [int((cluster.get("CPU", 0.0) - 1) / cpus)] if cpus else []
    share = workers.most_workers * workers.gpus_per_worker
    room += [int(cluster.get("GPU", 0.0) / share)] if workers.use_gpu else []
    most = min(room, default=wanted)
    asked = config.search.max_concurrent
    if most < (asked or 1) and cluster_address() is None:
        gpus = f" and {share:g} of {cluster.get('GPU', 0):g} GPUs" if workers.use_gpu else ""
        raise InputError(
            f"--max-concurrent {asked or 1}: {plural(asked or 1, 'trial')} at a time, each with {cpus:g} of "
            f"{cluster.get('CPU', 0):g} CPUs{gpus}, will not fit: Ray Data needs 1 CPU to read. "
            + (
                f"Give {most} or less."
                if most
                else "Lower --cpus-per-worker, --num-workers or --gpus-per-worker."
            )
        )
    # On CPUs, each worker of a trial uses at least one thread.
    full = most if workers.use_gpu else min(most, int(cluster.get("CPU", 1.0)) // workers.most_workers)
    return asked or max(1, min(full, wanted))


def _planned(
    config: SweepConfig, space: Space, base: DistillConfig, meanings: dict[str, str], out: Path
) -> dict[int, Trial]:
    """Return the trials known before the first one runs, and write their files.

    These are the trials of an earlier start, and as many more as are asked for; Optuna chooses its own later.

    Args:
        meanings: `prompts_key` -> a digest that is equal for equal anchors.
    """
    known = read_trials(out)
    if config.search.optuna:
        return known
    wanted = _wanted(config, space)
    # More than wanted: some are left out below.
    listed = grid(space) if config.search.grid else drawn(space, 10 * wanted, config.seed)
    distinct: dict[str, Settings] = {}
    equal = 0
    for settings in listed:
        if len(distinct) == wanted:
            break
        meaning = _meaning(settings, base, meanings)
        equal += meaning in distinct
        distinct.setdefault(meaning, settings)
    if equal:
        print_stage(
            "equal", f"{plural(equal, 'combination')} with the same anchors as another one", "left out"
        )
    tried = [trial.settings for trial in known.values()]
    fresh = [settings for settings in distinct.values() if settings not in tried]
    for number, settings in enumerate(fresh[: max(0, wanted - len(tried))], start=max(known, default=-1) + 1):
        known[number] = Trial(number, settings)
        write_trial(out, known[number])
    return known


def _meaning(settings: Settings, base: DistillConfig, meanings: dict[str, str]) -> str:
    """Return a string that is equal for settings that train identically.

    With one prompt for each class, for instance, the mean of the prompts is the prompt itself.
    """
    prompts = applied(base, settings).prompts
    others = {name: value for name, value in settings.items() if not hasattr(prompts, name)}
    return json.dumps([meanings[prompts_key(prompts)], others], default=str)


def _suggestions(config: SweepConfig, space: Space, trials: dict[int, Trial]) -> TrialQueue:
    left = [trial for trial in trials.values() if not trial.done]
    max_failures = config.workers.max_failures
    if not config.search.optuna:
        return TrialQueue(left, None, (), max_failures)
    advisor = OptunaSampler(space, config.seed, [trial for trial in trials.values() if trial.done])
    # Numbers may have gaps: a trial that was cut off before it started has no file.
    unused = count(max(trials, default=-1) + 1)
    numbers = [*islice(unused, max(0, _wanted(config, space) - len(trials)))]
    return TrialQueue(left, advisor, numbers, max_failures)


def _threads(shared: TrialInputs) -> str:
    workers = shared.base.workers
    if workers.use_gpu:
        return f"{workers.most_workers * workers.gpus_per_worker:g} GPUs each"
    own = f"{plural(workers.threads_per_worker or 1, 'thread')} each"
    return own if workers.num_workers == 1 else f"{workers.num_workers} workers each, {own}"


def _done_before(trials: dict[int, Trial]) -> str:
    done = sum(trial.done for trial in trials.values())
    return f"{done} done before" if done else ""


def _leave_report(
    config: SweepConfig,
    space: Space,
    shared: TrialInputs,
    out: Path,
    tracking: Tracking,
    *,
    began: float,
    ended: Status,
) -> Summary:
    """Write the report and the summary to the folder and to MLflow; return the summary.

    Args:
        ended: how the sweep ended; one that finished without a score has failed.
    """
    trials = [*read_trials(out).values()]
    for path in write_report(out, trials, space, shared.base):
        tracking.artifact(path, PLOTS if path.parent.name == PLOTS else None)
    best = best_of(trials)
    status: Status = ended if best or ended == "interrupted" else "failed"
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
        paths={"trials": TRIALS_FILE, **({"best": BEST_FILE} if best else {}), "plots": PLOTS},
        stages={**by_status, "best": best.settings if best else None},
    )
    summary = write_summary_and_report(out, summary)
    for name in (SUMMARY_FILE, *([REPORT] if "report" in summary.paths else [])):
        tracking.artifact(out / name)
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
    print(f"\n{plural(len(trials), 'trial')}: {said}; {format_duration(summary.wall_seconds)}")
    best = best_of(trials)
    if best is not None:
        print(f"best: {in_words(best.settings)}")
        print(f"beamclip distill --config {out / BEST_FILE} --out RUN")
    files = [
        TRIALS_FILE,
        *([BEST_FILE] if best else []),
        f"{PLOTS}/",
        *([REPORT] if best else []),
        SUMMARY_FILE,
    ]
    print(f"{out}: {'  '.join(files)}")
