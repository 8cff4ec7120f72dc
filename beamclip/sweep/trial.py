"""A trial as it is written down: its settings, its scores so far, how it ended."""

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
"""What trials are compared by."""

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
"""stopped: by ASHA. One that is waiting or running while no sweep is going on was interrupted."""


@dataclass(frozen=True)
class Score:
    """A student on the held-out images."""

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
    """Of the whole training."""
    scores: tuple[Score, ...] = ()
    """Oldest first."""
    seconds: float = 0.0
    """From its start, or last restart, to its last score."""
    problem: str | None = None
    """Why it failed."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:03d}"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ("finished", "stopped")

    @property
    def score(self) -> float | None:
        """The last top-1."""
        return self.scores[-1].zeroshot_top1 if self.scores else None

    @property
    def step(self) -> int:
        """Of the last score."""
        return self.scores[-1].step if self.scores else 0


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Best first: those that came to their end by score, then the others by what they reached."""
    return sorted(trials, key=lambda each: (each.status != "finished", -(each.score or 0.0), each.number))


def trial_dir(sweep_dir: Path, number: int) -> Path:
    """The folder of a trial."""
    return sweep_dir / TRIALS / f"{number:03d}"


def write_trial(sweep_dir: Path, trial: Trial) -> None:
    """Write a trial down; a reader meets the old file or the new one."""
    folder = trial_dir(sweep_dir, trial.number)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(trial), indent=1, default=str) + "\n"
    write_whole(folder / TRIAL_FILE, without_secrets(text))


def read_trials(sweep_dir: Path) -> dict[int, Trial]:
    """All trials of a sweep, by number, in order."""
    paths = sorted(sweep_dir.glob(f"{TRIALS}/*/{TRIAL_FILE}"))
    return {trial.number: trial for trial in (_parse(read_json(path)) for path in paths)}


def _parse(content: dict[str, Any]) -> Trial:
    scores = tuple(Score(**score) for score in content.pop("scores"))
    return Trial(**{**content, "settings": read_settings(content["settings"])}, scores=scores)
