"""Record what happens to the trials of a sweep, in files and in MLflow, and show it on the terminal."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec

from beamclip.addresses import without_secrets
from beamclip.commands.console import ProgressLine, percent, plural, print_stage
from beamclip.commands.effects import effective_parameters
from beamclip.commands.options import SweepConfig
from beamclip.config import write_config
from beamclip.runs.folder import CONFIG_FILE
from beamclip.runs.recorder import Recorder
from beamclip.sweep.report import best_of
from beamclip.sweep.run_trial import Report, TrialInputs, trial_checkpoints
from beamclip.sweep.space import Settings, applied, in_words
from beamclip.sweep.trial import Score, Trial, trial_dir, write_trial
from beamclip.tracking import Tracking, tracked_run_id, tracking_uri
from beamclip.tracking.store import PARENT_TAG
from beamclip.training.checkpoint_store import cause_of
from beamclip.training.events import Recorded, Started

log = logging.getLogger(__name__)


class SweepMonitor:
    """The tuning.Listener that records the trials in files and in MLflow, and shows their progress."""

    def __init__(
        self,
        out: Path,
        config: SweepConfig,
        shared: TrialInputs,
        parent: Tracking,
        trials: dict[int, Trial],
        wanted: int,
    ) -> None:
        """Start with the trials known so far.

        Args:
            out: folder of the sweep.
            parent: the sweep's own MLflow run.
            trials: by number; changed in place.
            wanted: number of trials left to run.
        """
        self.out = out
        self.config = config
        self.shared = shared
        self.parent = parent
        self.trials = trials
        self.left = wanted
        self.recorders: dict[int, Recorder] = {}
        self.to_clear = {trial.number for trial in trials.values() if trial.done}
        self.interrupted = threading.Event()
        self.line = ProgressLine()

    @contextlib.contextmanager
    def watching(self, interrupted: threading.Event) -> Iterator[None]:
        """Watch trials; on exit, mark those still running KILLED in MLflow and remove unneeded checkpoints.

        Args:
            interrupted: set once the user pressed Ctrl-C.
        """
        self.interrupted = interrupted
        try:
            yield
        finally:
            self.line.close()
            for number in [*self.recorders]:
                self.recorders.pop(number).tracking.close("KILLED")
            self._clear()

    def started(self, number: int, settings: Settings) -> None:
        """Open the trial's folder and its MLflow run, unless the trial restarts within this sweep."""
        known = self.trials.get(number, Trial(number, settings))
        self._note(replace(known, status="running", problem=None))
        if number not in self.recorders:
            self.recorders[number] = self._recorder(number, settings)
        self._show()

    def reported(self, number: int, report: Report) -> None:
        """Keep the records of training, and the score or the reason for failure."""
        trial = self.trials[number]
        for event in report["events"]:
            match event:
                case Started(step=step):
                    self.recorders[number].rewind(step)
                case Recorded(values):
                    self.recorders[number].keep(values)
        if "problem" in report:
            self._note(replace(trial, problem=report["problem"]))
            return
        score = Score(report["step"], report["zeroshot_top1"], report["zeroshot_top5"])
        before = tuple(each for each in trial.scores if each.step < score.step)
        self._note(
            replace(
                trial,
                status="finished" if score.step == report["steps"] else "running",
                scores=(*before, score),
                steps=report["steps"],
                seconds=report["seconds"],
                problem=None,
            )
        )
        if score.step > trial.step:
            # Otherwise the score was logged before the process was lost, and MLflow would keep it twice.
            metrics = {"zeroshot_top1": score.zeroshot_top1, "zeroshot_top5": score.zeroshot_top5}
            self.recorders[number].tracking.log([{"step": score.step, **metrics}])
        self._show()

    def lost(self, number: int, cause: str) -> None:
        """Print what happened to the trial, and where it will resume."""
        trial = self.trials[number]
        where = f"resumes at step {trial.step}" if trial.step else "starts again"
        self.line.close()
        print_stage(f"trial {trial.name}", f"{cause}; it {where}")
        self._show()

    def ended(self, number: int, problem: str | None) -> None:
        """Record and print how the trial ended; one cut off by Ctrl-C stays as it is, for --resume."""
        trial = self.trials[number]
        if self.interrupted.is_set() and trial.step < max(1, trial.steps):
            return
        problem = problem or trial.problem
        ended = "finished" if trial.step == trial.steps else "stopped"
        trial = replace(trial, status="failed" if problem else ended, problem=problem)  # type: ignore[arg-type]
        self._note(trial)
        self.to_clear |= {number} if trial.done else set()
        self.left -= 1
        tracking = self.recorders.pop(number).tracking
        tracking.artifact(trial_dir(self.out, number) / CONFIG_FILE)
        tracking.close("FAILED" if problem else "FINISHED")
        self._clear()
        self.line.close()
        said = f"failed: {problem}" if problem else in_words(trial.settings)
        note = "" if problem else percent(trial.score or 0.0)
        print_stage(f"trial {trial.name}", said, note if trial.status != "stopped" else f"{note}, stopped")
        best = best_of([*self.trials.values()])
        if best is not None:
            done = sum(each.done for each in self.trials.values())
            self.parent.log([{"step": done, "best_zeroshot_top1": best.score or 0.0}])
        self._show()

    def _note(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        write_trial(self.out, trial)

    def _recorder(self, number: int, settings: Settings) -> Recorder:
        """Make the trial's folder, and its MLflow run as a child of the sweep's."""
        folder = trial_dir(self.out, number)
        config = applied(self.shared.base, settings)
        write_config(config, folder / CONFIG_FILE)
        parent = {PARENT_TAG: self.parent.run_id} if self.parent.run_id else {}
        name = f"{self.out.resolve().name}/{number:03d}"
        tracking = Tracking.start(
            replace(self.config.tracking, run_name=name, system_metrics=False),
            run_dir=folder,
            params=effective_parameters(config, cached=True),
            tags={"command": "trial", **parent},
            run_id=tracked_run_id(folder),
            uri=tracking_uri(self.out),
        )
        return Recorder(folder, tracking)

    def _clear(self) -> None:
        """Remove the checkpoints of trials that no longer need them.

        A stopped trial may still be writing its last one, which is removed when the next trial ends.
        """
        for number in [*self.to_clear]:
            address = trial_checkpoints(self.shared.checkpoints, number)
            try:
                fs, path = fsspec.core.url_to_fs(address)
                if fs.exists(path):
                    fs.rm(path, recursive=True)
                else:
                    self.to_clear.discard(number)
            except FileNotFoundError:
                # The writer of these checkpoints removes old ones at the same time.
                continue
            except Exception as error:  # each store raises errors of its own; none may end the sweep
                log.warning(
                    "%s: the checkpoints of an ended trial were not removed: %s",
                    without_secrets(address),
                    cause_of(error),
                )

    def _show(self) -> None:
        best = best_of([*self.trials.values()])
        text = f"{plural(self.left, 'trial')} to go, {len(self.recorders)} running"
        self.line.show(f"{text}  best {percent(best.score or 0.0)} (trial {best.name})" if best else text)
