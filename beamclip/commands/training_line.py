"""A training while it runs: one line that shows where it is, and the records that remain of it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from beamclip.commands.console import ProgressLine, format_duration, percent, plural, print_stage
from beamclip.data.lost_samples import FirstLost
from beamclip.runs.recorder import Recorder
from beamclip.training.config import BEST_BY
from beamclip.training.events import (
    Damaged,
    Event,
    Lost,
    Recorded,
    Resizing,
    Saved,
    Started,
    Waiting,
)


@dataclass
class Progress:
    """What is known of a run while it trains."""

    history: list[dict[str, float]]
    began: float = field(default_factory=time.perf_counter)
    first_step: int = 0
    started: bool = False
    """Whether workers have started in this command."""

    @property
    def step(self) -> int:
        """The last recorded step; 0 before the first."""
        return int(self.history[-1]["step"]) if self.history else 0

    def begin(self, history: list[dict[str, float]], step: int, workers: int) -> None:
        """Note that workers start, or start again, after `step`; `history` holds the records up to it."""
        if self.started or step:
            print_stage("resumed", f"at step {step} with {plural(workers, 'worker')}")
        # A restart goes back behind the first start if that start's checkpoint was damaged since.
        self.first_step = min(self.first_step, step) if self.started else step
        self.history, self.started = history, True

    @property
    def fresh(self) -> list[dict[str, float]]:
        """The records of this command, without those of the run that it resumed."""
        return [record for record in self.history if record["step"] > self.first_step]

    @property
    def validated(self) -> dict[str, float] | None:
        """The last record of a validation; None before the first."""
        return next((record for record in reversed(self.history) if BEST_BY in record), None)

    @property
    def training_seconds(self) -> float:
        """Seconds between the records of this command; start-up and checkpoints do not count."""
        return sum(record["window_seconds"] for record in self.fresh)


class TrainingLine:
    """Shows the events of a training, each kind in its way, and keeps its records."""

    def __init__(
        self,
        progress: Progress,
        recorder: Recorder,
        total_steps: int,
        *,
        show_workers: bool,
        on_saved: Callable[[], object],
    ) -> None:
        """Show nothing yet.

        Args:
            progress: is kept up to date.
            show_workers: whether their number may change, and is shown.
            on_saved: called after each checkpoint.
        """
        self._progress = progress
        self._recorder = recorder
        self._total_steps = total_steps
        self._show_workers = show_workers
        self._on_saved = on_saved
        self._line = ProgressLine()
        self._lost = FirstLost()

    def __call__(self, event: Event) -> None:
        """Show and keep one event."""
        match event:
            case Lost(samples):
                for _, text in self._lost.new(samples):
                    self._say("skipped", text)
            case Damaged(text):
                self._say("damaged", text)
            case Started(step, number, decode):
                self._line.close()
                self._progress.begin(self._recorder.rewind(step), step, number)
                if decode == "tasks":
                    print_stage("decoding", "in tasks of Ray Data, by the CPUs of all nodes")
            case Resizing(number):
                self._say("resizing", f"to {plural(number, 'worker')}, after a checkpoint")
            case Waiting(found, least):
                self._say("waiting", f"for {plural(least, 'worker')}: the cluster has room for {found}")
            case Saved():
                self._on_saved()
            case Recorded(values):
                self._progress.history.append(values)
                self._recorder.keep(values)
                text = _text_of(self._progress, self._total_steps, show_workers=self._show_workers)
                self._line.show(text, last=values["step"] == self._total_steps)

    def close(self) -> None:
        """End the line."""
        self._line.close()

    def _say(self, stage: str, text: str) -> None:
        self._line.close()
        print_stage(stage, text)


def _text_of(progress: Progress, total: int, *, show_workers: bool) -> str:
    record = progress.history[-1]
    # Training time alone: the seconds until the first batch would make the first estimates far too long.
    eta = progress.training_seconds / (progress.step - progress.first_step) * (total - progress.step)
    # Steps without a usable image have no loss.
    loss = record.get("loss", math.nan)
    workers = f"  {plural(int(record['workers']), 'worker')}" if show_workers else ""
    validated = progress.validated
    score = f"  val {percent(validated[BEST_BY])}" if validated else ""
    return (
        f"step {progress.step}/{total}  loss {loss:.3f}  {record['images_per_second']:,.0f} img/s  "
        f"data {100 * record['data_wait_share']:.0f} %{workers}{score}  eta {format_duration(eta)}"
    )
