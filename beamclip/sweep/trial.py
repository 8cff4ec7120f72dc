"""Trials and their files: settings, scores so far, and status."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from beamclip.addresses import without_secrets
from beamclip.files import read_json, write_whole
from beamclip.sweep.space import Settings, read_settings

TRIAL_FILE = "trial.json"
TRIALS = "trials"
METRIC = "zeroshot_top1"
"""The metric by which trials are compared."""

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
"""A stopped trial was stopped by ASHA. While no sweep runs, a waiting or running trial was interrupted."""


@dataclass(frozen=True)
class Score:
    """Zero-shot accuracies of a student on the held-out images, 0..1, after a step."""

    step: int
    zeroshot_top1: float
    zeroshot_top5: float


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep."""

    number: int
    settings: Settings
    status: Status = "waiting"
    steps: int = 0
    """Steps of the whole training; 0 before the first score."""
    scores: tuple[Score, ...] = ()
    """Oldest first."""
    seconds: float = 0.0
    """Time from the trial's start, or last restart, to its last score."""
    problem: str | None = None
    """Reason for the failure."""

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        return f"{self.number:03d}"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do; --resume tries failed trials again."""
        return self.status in ("finished", "stopped")

    @property
    def score(self) -> float | None:
        """The last top-1 accuracy, 0..1; None before the first score."""
        return self.scores[-1].zeroshot_top1 if self.scores else None

    @property
    def step(self) -> int:
        """Step of the last score; 0 before the first."""
        return self.scores[-1].step if self.scores else 0


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials, best first: finished ones by score, then the others by their last score."""
    return sorted(trials, key=lambda each: (each.status != "finished", -(each.score or 0.0), each.number))


def trial_dir(sweep_dir: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return sweep_dir / TRIALS / f"{number:03d}"


def write_trial(sweep_dir: Path, trial: Trial) -> None:
    """Write a trial's file; a reader sees the old file or the new one, never a part."""
    folder = trial_dir(sweep_dir, trial.number)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(trial), indent=1, default=str) + "\n"
    write_whole(folder / TRIAL_FILE, without_secrets(text))


def read_trials(sweep_dir: Path) -> dict[int, Trial]:
    """Return all trials of a sweep by number, in order."""
    paths = sorted(sweep_dir.glob(f"{TRIALS}/*/{TRIAL_FILE}"))
    return {trial.number: trial for trial in (_parse(read_json(path)) for path in paths)}


def _parse(content: dict[str, Any]) -> Trial:
    scores = tuple(Score(**score) for score in content.pop("scores"))
    return Trial(**{**content, "settings": read_settings(content["settings"])}, scores=scores)
