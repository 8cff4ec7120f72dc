"""A training run as its command sees it: opened, shown, recorded, and finished with a summary."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from beamclip.cluster.config import WorkersConfig
from beamclip.cluster.room import check_resources
from beamclip.commands.after_training import AfterTraining
from beamclip.commands.console import percent, plural, print_stage
from beamclip.commands.effects import effective_parameters
from beamclip.commands.lineage import scored_dataset, training_datasets
from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.commands.report import report_run
from beamclip.commands.training_line import Progress, TrainingLine
from beamclip.config import write_config
from beamclip.data.listing import fingerprint
from beamclip.data.position import from_plain
from beamclip.data.shards import Shard
from beamclip.evaluation.intervals import Interval, ends
from beamclip.runs.backup import back_up
from beamclip.runs.folder import (
    CONFIG_FILE,
    HISTORY_FILE,
    MODEL,
    PLOTS,
    REPORT,
    TRACE,
    checkpoint_address,
    open_run_dir,
)
from beamclip.runs.recorder import Recorder, read_history
from beamclip.summary import SUMMARY_FILE, Counts, Summary, write_summary
from beamclip.tracking import ModelRef, Tracking, tracked_run_id
from beamclip.training.checkpoint import read_checkpoint
from beamclip.training.checkpoint_store import best_step
from beamclip.training.config import BEST_BY
from beamclip.training.launch import TrainingEnd, fit
from beamclip.training.loop import trained_weights
from beamclip.training.manifest import DamagedCheckpointError
from beamclip.training.waiting import WaitingWorkers
from beamclip.training.worker import Storage, TrainingJob

TrainConfig = DistillConfig | PretrainConfig


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training."""

    weights: dict[str, Tensor]
    """Weights to export, as returned by loop.trained_weights."""
    step: int
    """The last step."""
    weights_step: int
    """The step that the weights are of."""
    history: list[dict[str, float]]
    images: int
    """Images that passed through the method in this command."""
    seconds: float
    """Wall time of `Run.train`."""
    images_per_second: float | None
    """Mean over the windows between records, without checkpoints and start-up."""
    skipped: dict[str, int]


@dataclass(frozen=True)
class Run:
    """A training that a command runs: its folder, its records, its run in MLflow."""

    command: str
    config: TrainConfig
    """Options as returned by `batches.sized`."""
    folder: Path
    shards: list[Shard]
    tracking: Tracking
    workers: WaitingWorkers | None
    """The workers that train, as `waiting_workers` yields them; None if this process trains."""
    began: float
    """time.perf_counter() when the command began."""

    @property
    def storage(self) -> Storage:
        """Where the workers write checkpoints and traces."""
        return Storage(
            checkpoints=checkpoint_address(self.config.checkpoint.checkpoints, self.folder),
            keep_checkpoints=self.config.checkpoint.keep_checkpoints,
            resumes=self.config.resume is not None,
            trace=str((self.folder / TRACE).resolve()) if self.config.cadence.trace_samples else None,
        )

    def train(self, job: TrainingJob, title: str) -> TrainingResult:
        """Run a job to its end, with one progress line.

        Raises:
            TrainingError: the job could not be finished.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint and a summary are written.
        """
        workers = self.config.workers
        who = "this process" if workers.without_ray else _numbered(workers)
        where = f"{who} on {'GPU' if workers.use_gpu else 'CPU'}"
        print_stage("training", f"{title}, {plural(job.total_steps, 'step')}, batch {job.batch_size}", where)
        progress = Progress(read_history(self.folder))
        # Not in this thread, which must hear Ctrl-C: a slow store may block for minutes.
        with ThreadPoolExecutor(1) as copier:
            shown = TrainingLine(
                progress,
                Recorder(self.folder, self.tracking),
                job.total_steps,
                show_workers=workers.is_elastic,
                on_saved=lambda: copier.submit(back_up, job.storage.checkpoints, self.folder),
            )
            outcome = fit(job, workers, shown, self.workers)
        shown.close()
        trained = _trained(outcome, progress, job.batch_size)
        if outcome.interrupted:
            self._leave_interrupted(trained)
        if self.config.validation.export_checkpoint == "best":
            return _with_best_weights(trained, job.storage.checkpoints)
        return trained

    def release_ray(self) -> None:
        """Let Ray stop beside what the command still does without it, unless Ray was up before."""
        if self.workers is not None:
            self.workers.release_ray()

    def finish(
        self,
        trained: TrainingResult,
        after: AfterTraining,
        *,
        metrics: dict[str, float],
        intervals: Mapping[str, Interval],
        stages: dict[str, Any],
        model: str,
    ) -> Summary:
        """Write summary.json, and log metrics, plots and the model to MLflow.

        Args:
            metrics: the scores of the model.
            intervals: 95 % intervals of the scores that have one, by name.
            model: name of what was trained: of the student's backbone, or of the model's config.

        Raises:
            UnscoredError, KeyboardInterrupt: a step after training failed or was interrupted; see
                AfterTraining.raise_failure.
        """
        summary = self._summary_of(trained, after, metrics, intervals, stages)
        summary = self._with_report(summary, after)
        skipped = {f"skipped/{reason}": float(number) for reason, number in trained.skipped.items()}
        lost = float(sum(trained.skipped.values()))
        self.tracking.log([{"step": trained.step, "skipped": lost, **skipped}])
        self._log_model(model, trained.weights_step, {**metrics, **ends(intervals)})
        for name in (SUMMARY_FILE, CONFIG_FILE, REPORT):
            if (self.folder / name).exists():
                self.tracking.artifact(self.folder / name)
        if (self.folder / PLOTS).is_dir():
            self.tracking.artifact(self.folder / PLOTS, PLOTS)
        after.raise_failure(self.config, self.folder)
        return summary

    def _summary_of(
        self,
        trained: TrainingResult,
        after: AfterTraining,
        metrics: dict[str, float],
        intervals: Mapping[str, Interval],
        stages: dict[str, Any],
    ) -> Summary:
        samples = sum(shard.samples for shard in self.shards)
        lost = sum(trained.skipped.values())
        last = trained.history[-1] if trained.history else {}
        exported = next((each for each in trained.history if each["step"] == trained.weights_step), last)
        recorded = {key: value for key, value in last.items() if key.startswith("loss")}
        recorded |= {key: value for key, value in exported.items() if key.startswith("val_")}
        validation = sum(record.get("validation_seconds", 0.0) for record in trained.history)
        return Summary(
            command=self.command,
            status=after.status,
            wall_seconds=time.perf_counter() - self.began,
            images=trained.images,
            images_per_second=trained.images_per_second,
            metrics={**recorded, **metrics},
            intervals=intervals,
            counts=Counts(attempted=samples, succeeded=samples - lost, skipped=trained.skipped),
            mlflow_run_id=self.tracking.run_id,
            paths={"metrics": HISTORY_FILE, "model": MODEL, "plots": PLOTS},
            stages={
                "training_seconds": trained.seconds,
                "validation_seconds": validation,
                "workers": last.get("workers"),
                "exported_step": trained.weights_step,
                **stages,
            },
            notes=after.notes,
        )

    def _log_model(self, name: str, step: int, metrics: dict[str, float]) -> None:
        """Log the exported model, and the scores as those of this model on the labelled images."""
        kind = "student" if isinstance(self.config, DistillConfig) else "clip"
        self.tracking.model(self.folder / MODEL, name, kind, step)
        if metrics:
            scored = scored_dataset(self.config)
            of_teacher = {key: value for key, value in metrics.items() if key.startswith("teacher_")}
            own = {key: value for key, value in metrics.items() if key not in of_teacher}
            self.tracking.log([{"step": step, **own}], model="own", dataset=scored)
            self.tracking.log([{"step": step, **of_teacher}], dataset=scored)

    def _with_report(self, summary: Summary, after: AfterTraining) -> Summary:
        """Write the summary and the report; return the summary, which names the report if there is one."""
        write_summary(self.folder, summary)
        report = after.attempt("report", lambda: report_run(self.folder))
        paths = {**summary.paths, **({"report": report.name} if report else {})}
        summary = replace(summary, status=after.status, notes=after.notes, paths=paths)
        write_summary(self.folder, summary)
        return summary

    def _leave_interrupted(self, trained: TrainingResult) -> NoReturn:
        """Write a summary without scores or model, then raise KeyboardInterrupt as Ctrl-C does elsewhere."""
        summary = Summary(
            command=self.command,
            status="interrupted",
            wall_seconds=time.perf_counter() - self.began,
            images=trained.images,
            images_per_second=trained.images_per_second,
            stages={"training_seconds": trained.seconds},
            counts=Counts(skipped=trained.skipped),
            mlflow_run_id=self.tracking.run_id,
            paths={"metrics": HISTORY_FILE},
        )
        write_summary(self.folder, summary)
        step = trained.step
        raise KeyboardInterrupt(f"a checkpoint of step {step} is kept; go on with --resume {self.folder}")


@contextmanager
def started_run(
    command: str,
    config: TrainConfig,
    folder: Path,
    shards: list[Shard],
    workers: WaitingWorkers | None,
    *,
    teachers: Sequence[ModelRef] = (),
    began: float,
) -> Iterator[Run]:
    """Open the run's folder, wait for Ray, begin its MLflow run, and yield the run.

    Args:
        teachers: models that it learns from, or begins with.

    Raises:
        InputError: the folder (see open_run_dir) or the cluster (see WaitingWorkers) cannot be used.
    """
    _open_folder(config, folder, shards)
    if workers is None:
        check_resources(config.workers)
    else:
        workers.wait_for_ray()
        workers.begin()
    cached = any(shard.format == "cache" for shard in shards)
    with track_run(config, folder, command, cached=cached) as tracking:
        tracking.inputs(datasets=training_datasets(config, shards), models=teachers)
        yield Run(command, config, folder, shards, tracking, workers, began)


def _open_folder(config: TrainConfig, run_dir: Path, shards: list[Shard]) -> None:
    checkpoints = checkpoint_address(config.checkpoint.checkpoints, run_dir)
    open_run_dir(run_dir, checkpoints, fingerprint(shards), resume=config.resume is not None)
    if config.checkpoint.checkpoints:
        # A resumed run may be started from another folder.
        config = replace(config, checkpoint=replace(config.checkpoint, checkpoints=checkpoints))
    write_config(config, run_dir / CONFIG_FILE)


@contextmanager
def track_run(
    config: TrainConfig,
    run_dir: Path,
    command: str,
    *,
    cached: bool,
    varied: Collection[str] = (),
) -> Iterator[Tracking]:
    """Begin the MLflow run of a run, or continue it; it is closed with the status that the block ends with.

    Args:
        cached: whether the data are teacher caches.
        varied: options that are not logged, since they have no single value in this run.
    """
    given = effective_parameters(config, cached=cached)
    tracking = Tracking.start(
        config.tracking,
        run_dir=run_dir,
        params={name: value for name, value in given.items() if name not in varied},
        tags={"command": command},
        run_id=tracked_run_id(run_dir),
    )
    with tracking:
        back_up(checkpoint_address(config.checkpoint.checkpoints, run_dir), run_dir)
        yield tracking


def _numbered(workers: WorkersConfig) -> str:
    """`4 workers`, or `2 to 8 workers`."""
    least = f"{workers.least_workers} to " if workers.is_elastic else ""
    return f"{least}{plural(workers.most_workers, 'worker')}"


def _trained(outcome: TrainingEnd, progress: Progress, batch_size: int) -> TrainingResult:
    seconds = progress.training_seconds
    images = sum(record["images_per_second"] * record["window_seconds"] for record in progress.fresh)
    return TrainingResult(
        # The rest of the state is dropped: an optimiser's moments are twice the size of the weights.
        weights=trained_weights(outcome.state),
        step=outcome.state["step"],
        weights_step=outcome.state["step"],
        history=progress.history,
        images=(outcome.state["step"] - progress.first_step) * batch_size,
        seconds=time.perf_counter() - progress.began,
        images_per_second=images / seconds if seconds else None,
        skipped=from_plain(outcome.state["position"]).skipped,
    )


def _with_best_weights(trained: TrainingResult, checkpoints: str) -> TrainingResult:
    """Return the result with the weights of the checkpoint that had the highest score in validation."""
    step = best_step(checkpoints)
    if step is None or step == trained.step:
        return trained
    try:
        state = read_checkpoint(checkpoints, step)
    except DamagedCheckpointError as error:
        print_stage("damaged", f"{error}; exported are the weights of the last step, not the best")
        return trained
    print_stage("best", f"the weights of step {step}, by {BEST_BY}")
    return replace(trained, weights=trained_weights(state), weights_step=step)


def show_skipped(trained: TrainingResult, attempted: int) -> None:
    """Print one line on samples that could not be used, if there were any."""
    if trained.skipped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(trained.skipped.items()))
        lost = sum(trained.skipped.values())
        print_stage(
            "skipped", f"{lost:,} of {plural(attempted, 'sample')} ({percent(lost / attempted)}): {reasons}"
        )
