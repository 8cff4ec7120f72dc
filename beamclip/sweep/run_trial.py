"""Run a trial in its process: train a student, score it on held-out images, and report."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import ray.tune
import torch

from beamclip.commands.distill_job import TrainingData, distillation_job, restore_student
from beamclip.commands.options import DistillConfig
from beamclip.errors import InputError
from beamclip.models.config import StudentConfig
from beamclip.prompts.config import PromptConfig
from beamclip.sweep.space import applied
from beamclip.sweep.trial import METRIC
from beamclip.training.checkpoint import State, read_checkpoint
from beamclip.training.checkpoint_store import discard_after
from beamclip.training.events import Event, Recorded, Saved, Started
from beamclip.training.launch import fit
from beamclip.training.loop import trained_weights
from beamclip.training.waiting import WaitingWorkers, waiting_workers
from beamclip.training.worker import Storage, TrainingError, TrainingJob

NO_SCORE = -1.0
"""Score reported for a trial that failed: Tune needs a number."""

Report = dict[str, Any]
"""Message of a trial to the sweep: the "events" of training since the last report, and either a score or a
"problem", the reason why the trial failed. A score consists of "step", "steps" (of the whole training),
"scored" (evaluations so far), "seconds" (since the trial's start or last restart), "zeroshot_top1" and
"zeroshot_top5" (0..1)."""


@dataclass(frozen=True)
class TrialInputs:
    """Inputs that all trials of a sweep share; large ones are references into the object store."""

    base: DistillConfig
    """The distillation whose options the trials vary, with the teacher cache as its data."""
    images: TrainingData
    students: dict[str, tuple[Any, Any]]
    """`student_key` -> the untrained ImageTower, and the HeldOut images preprocessed for it."""
    anchors: dict[str, tuple[Any, Any]]
    """`prompts_key` -> the list of Anchors to train on, and the Anchors of the classes to score with."""
    vision_widths: tuple[int, ...]
    """Widths of the features of the teachers of vision only."""
    num_classes: int
    checkpoints: str
    """Address below which each trial has its own folder."""
    scores: int
    """Evaluations per trial."""
    temperature: float
    """Temperature of the scoring, where a class has several anchors."""


def student_key(student: StudentConfig, seed: int) -> str:
    """Return a string that identifies an untrained student."""
    return json.dumps([asdict(student), seed], default=str)


def prompts_key(prompts: PromptConfig) -> str:
    """Return a string that identifies the options of a set of anchors."""
    return json.dumps(asdict(prompts), default=str)


def run_trial(trial: dict[str, Any], shared: TrialInputs) -> None:
    """Run a trial, or the rest of one whose process was lost; report a failed training as a problem.

    Args:
        trial: its "number", its "settings", and the "step" of the last score that the sweep received, or 0.
    """
    config = applied(shared.base, trial["settings"])
    job = distillation_job(
        config,
        shared.images,
        teachers=(),
        student=shared.students[student_key(config.student, config.seed)][0],
        anchors=shared.anchors[prompts_key(config.prompts)][0],
        vision_widths=shared.vision_widths,
        storage=Storage(
            checkpoints=trial_checkpoints(shared.checkpoints, trial["number"]),
            # The checkpoint being scored must stay, however far ahead training is.
            keep_checkpoints=shared.scores,
        ),
    )
    every = -(-job.total_steps // shared.scores)
    job = replace(job, cadence=replace(job.cadence, checkpoint_every=every))
    reporter = _Reporter(_Scorer(config, shared), job, every, trial["step"])
    # Records after the last report were lost with the process, so those steps are trained again.
    discard_after(job.storage.checkpoints, after=reporter.step)

    def on_event(event: Event) -> None:
        match event:
            # The last checkpoint is scored after training has ended.
            case Saved(step) if step < job.total_steps:
                reporter.report(read_checkpoint(job.storage.checkpoints, step))
            case Started() | Recorded():
                reporter.events.append(event)

    try:
        with _workers_of(config) as waiting:
            outcome = fit(job, config.workers, on_event, waiting)
        reporter.report(outcome.state)
    except (TrainingError, InputError) as error:
        problem = {"problem": str(error), "events": reporter.events}
        ray.tune.report({METRIC: NO_SCORE, **problem, "done": True})


def _workers_of(config: DistillConfig) -> AbstractContextManager[WaitingWorkers | None]:
    """Yield the workers of the trial; None if this process is the only one."""
    return nullcontext() if config.workers.num_workers == 1 else waiting_workers(config.workers)


def trial_checkpoints(address: str, number: int) -> str:
    """Return the address of a trial's checkpoints, below the sweep's address."""
    return f"{address.rstrip('/')}/{number:03d}"


class _Scorer:
    """Computes the zero-shot accuracy of a student from the weights in a checkpoint."""

    def __init__(self, config: DistillConfig, shared: TrialInputs) -> None:
        # Imported here: with open_clip, the import takes seconds.
        from beamclip.models.teacher import ImageTeacher

        student, held_out = shared.students[student_key(config.student, config.seed)]
        self.device = torch.device("cuda" if config.workers.use_gpu else "cpu")
        self.tower = ImageTeacher(ray.get(student)).to(self.device)
        self.held_out = ray.get(held_out)
        self.anchors = ray.get(shared.anchors[prompts_key(config.prompts)][1])
        self.num_classes = shared.num_classes
        self.temperature = shared.temperature
        self.batch_size = config.scoring.scoring_batch

    def score(self, state: State) -> dict[str, float]:
        """Return the zero-shot metrics of a checkpoint's weights; see zeroshot_metrics."""
        from beamclip.evaluation.zeroshot import zeroshot_metrics

        restore_student(self.tower.network, trained_weights(state))
        parts = []
        for start in range(0, len(self.held_out.images), self.batch_size):
            images = torch.tensor(self.held_out.images[start : start + self.batch_size], device=self.device)
            parts.append(self.tower.encode_image(images.permute(0, 3, 1, 2)).cpu())
        labels = torch.tensor(self.held_out.labels)
        return zeroshot_metrics(
            torch.cat(parts), labels, self.anchors, self.num_classes, temperature=self.temperature
        )


class _Reporter:
    """Sends each score of a trial to the sweep once, with the events of training before it."""

    def __init__(self, scorer: _Scorer, job: TrainingJob, every: int, step: int) -> None:
        """Start after `step`, the step of the last score sent; `every` steps lie between two scores."""
        self.scorer = scorer
        self.steps = job.total_steps
        self.every = every
        self.events: list[Started | Recorded] = []
        self.began = time.perf_counter()
        self.step = step

    def report(self, state: State) -> None:
        """Score a state unless its step was reported; wait until the sweep continues or ends the trial."""
        step = state["step"]
        if step <= self.step:
            return
        scores = self.scorer.score(state)
        events, self.events, self.step = self.events, [], step
        seconds = time.perf_counter() - self.began
        ray.tune.report(
            {
                "step": step,
                "steps": self.steps,
                "scored": -(-step // self.every),
                "seconds": seconds,
                "events": events,
                **scores,
                # A trial with its last score is finished, whatever happens to its process.
                "done": step == self.steps,
            }
        )
