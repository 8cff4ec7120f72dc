"""The steps after training, such as scoring: a failure in one of them must not lose the trained model."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from beamclip.commands.options import DistillConfig, PretrainConfig
from beamclip.errors import InputError
from beamclip.prompts.config import PromptConfig
from beamclip.runs.folder import MODEL, PLOTS
from beamclip.summary import Status

Result = TypeVar("Result")
SCORING = "scoring"


class UnscoredError(RuntimeError):
    """Training succeeded, but a later step such as scoring failed."""


@dataclass
class AfterTraining:
    """Runs the steps after training one by one, and keeps their failures until the end."""

    failed: dict[str, BaseException] = field(default_factory=dict)
    """Error of each step that failed, by the name of the step."""
    left_out: list[str] = field(default_factory=list)
    """Names of the steps that were skipped after Ctrl-C."""

    def attempt(self, what: str, do: Callable[[], Result]) -> Result | None:
        """Run a step and return its result; None if it fails, or if an earlier step was interrupted."""
        if self.interrupted:
            self.left_out.append(what)
            return None
        try:
            return do()
        except (Exception, KeyboardInterrupt) as error:
            self.failed[what] = error
            return None

    @property
    def interrupted(self) -> bool:
        """Whether a step was interrupted by Ctrl-C."""
        return any(isinstance(error, KeyboardInterrupt) for error in self.failed.values())

    @property
    def status(self) -> Status:
        """Status of the run, for its summary."""
        return "interrupted" if self.interrupted else "failed" if self.failed else "finished"

    @property
    def notes(self) -> list[str]:
        """One line for each step that failed."""
        return [f"{what}: {_reason(error)}" for what, error in self.failed.items()]

    def raise_failure(self, config: DistillConfig | PretrainConfig, run_dir: Path) -> None:
        """Raise an error that says what failed, where the model is, and how to score it.

        Raises:
            KeyboardInterrupt: a step was interrupted by Ctrl-C.
            UnscoredError: a step failed.
        """
        if not self.failed:
            return
        later = f"The trained model is in {run_dir / MODEL}."
        unscored = SCORING in self.failed or SCORING in self.left_out
        if unscored and config.scoring.eval_data is not None:
            later += f" Score it by: {_how_to_score(config, run_dir)}"
        if self.interrupted:
            raise KeyboardInterrupt(later)
        raise UnscoredError(f"{' '.join(self.notes)} {later}") from next(iter(self.failed.values()))


def draw_curves(history: list[dict[str, float]], run_dir: Path) -> None:
    """Draw the curves of a training into the plots of its run; nothing without a record."""
    # Importing matplotlib takes half a second, for which training need not wait.
    from beamclip.plots.curves import plot_curves

    if history:
        plot_curves(history, run_dir / PLOTS / "curves.png")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    # Ray's errors carry the traceback of another process; what was raised there is their cause.
    error = getattr(error, "cause", None) or error
    text = (str(error).strip().splitlines() or [""])[0]
    said = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return said if said.endswith(".") else f"{said}."


def _how_to_score(config: DistillConfig | PretrainConfig, run_dir: Path) -> str:
    scoring = config.scoring
    assert scoring.eval_data is not None, "raise_failure() checks it"
    words = ["--model", run_dir, "--data", scoring.eval_data]
    if config.classes is not None:
        words += ["--classes", config.classes]
    if scoring.label_column != "label":
        words += ["--label-column", scoring.label_column]
    for item in fields(PromptConfig):
        value = getattr(config.prompts, item.name)
        if value != getattr(PromptConfig(), item.name):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{item.name.replace('_', '-')}", *values]
    return f"beamclip evaluate {shlex.join(map(str, words))}"
