"""What the folder of a run holds that a report shows, read from files alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from beamclip.errors import InputError
from beamclip.evaluation.results import Scores, read_scores, score_names
from beamclip.files import read_yaml
from beamclip.plots.contexts import ContextEffect, read_contexts
from beamclip.plots.retrieval import RetrievalExamples, read_retrieval
from beamclip.plots.sheet import Sheet, read_sheet
from beamclip.plots.similarity import Similarity, read_similarity
from beamclip.runs.folder import CONFIG_FILE, HISTORY_FILE, PLOTS
from beamclip.runs.recorder import read_history
from beamclip.summary import SUMMARY_FILE, Summary, read_summary

Read = TypeVar("Read")

REPORTED = ("pretrain", "distill", "evaluate", "sweep")
"""Commands that leave something to report."""
SWEEP_PICTURES = ("learning.png", "heat_map.png", "parallel.png")


class NothingToShowError(InputError):
    """A run that has neither scores, nor records of training, nor pictures so far."""


@dataclass(frozen=True)
class RunFiles:
    """A run as its folder tells of it; what the folder lacks is None or empty."""

    folder: Path
    label: str
    """Name of the run in the report."""
    command: str
    summary: Summary | None
    """None while the run goes on, and if it was cut off."""
    ended: datetime | None
    options: Mapping[str, str]
    """Every option by its own name, as written in config.yaml."""
    history: Sequence[dict[str, float]]
    scored: Mapping[str, Scores]
    """Scores of single images, by name of the data set or the model; empty where there is only one."""
    sheet: Sheet | None
    similarity: Similarity | None
    contexts: ContextEffect | None
    retrieval: RetrievalExamples | None
    pictures: tuple[Path, ...]
    """Pictures of a sweep."""
    problems: tuple[str, ...]
    """What is there but cannot be used, and why."""

    @property
    def shows_something(self) -> bool:
        """Whether there is more than options and counts."""
        parts = (self.metrics, self.history, self.scored, self.sheet, self.retrieval, self.pictures)
        return any(parts)

    @property
    def metrics(self) -> dict[str, float]:
        """Final figures that are finite; those of validation are curves."""
        held = self.summary.metrics if self.summary else {}
        found = {name: value for name, value in held.items() if value is not None}
        return {name: value for name, value in found.items() if not name.startswith("val_")}


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Read the folders of runs; where names are the same, labels have the folders above, too.

    Raises:
        InputError: see `read_run`.
    """
    runs = [read_run(folder) for folder in folders]
    depth = 1
    while len({_label(run, depth) for run in runs}) < len({run.folder.resolve() for run in runs}):
        depth += 1
    return [replace(run, label=_label(run, depth)) for run in runs]


def _label(run: RunFiles, depth: int) -> str:
    return "/".join(run.folder.resolve().parts[-depth:])


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a run. A file of it that is damaged is named in `problems`.

    Raises:
        InputError: the folder holds no run of a command in REPORTED.
        NothingToShowError: the run has left nothing to show so far.
    """
    content = _config(folder)
    problems: list[str] = []
    plots = folder / PLOTS

    def kept(path: Path, read: Callable[[Path], Read]) -> Read | None:
        try:
            return read(path) if path.exists() else None
        except InputError as error:
            problems.append(str(error))
            return None

    summary = kept(folder / SUMMARY_FILE, lambda path: read_summary(path.parent))
    command = summary.command if summary else _command_of(content)
    if command not in REPORTED:
        raise InputError(
            f"{folder}: a folder of beamclip {command}, which has no report. Give the --out folder of "
            f"{', '.join(REPORTED[:-1])} or {REPORTED[-1]}."
        )
    run = RunFiles(
        folder,
        folder.resolve().name,
        command,
        summary,
        _ended(folder, summary),
        flat_options(content),
        kept(folder / HISTORY_FILE, _numbers) or (),
        _scored(folder, problems),
        kept(plots / "predictions.json", read_sheet),
        kept(plots / "similarity.json", read_similarity),
        kept(plots / "contexts.json", read_contexts),
        kept(plots / "retrieval.json", read_retrieval),
        tuple(plots / name for name in SWEEP_PICTURES if command == "sweep" and (plots / name).exists()),
        tuple(problems),
    )
    if not run.shows_something:
        raise NothingToShowError(
            f"{folder}: nothing to show yet: no scores, no records of training, no pictures. "
            f"{'Wait for its first record, or resume' if summary is None else 'Run'} the command again."
        )
    return run


def flat_options(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a config.yaml by their own names, without sections, as texts."""
    flat: dict[str, str] = {}
    for name, value in content.items():
        options = value if isinstance(value, dict) else {name: value}
        flat.update({str(key): _shown(item) for key, item in options.items()})
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "" if value is None else str(value)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.exists():
        missing = "no such folder" if not folder.exists() else f"{CONFIG_FILE} is missing"
        raise InputError(f"{folder}: no run there ({missing}). Give the --out folder of a run.")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not the options of a run. Give the --out folder of a run.")
    return content


def _command_of(content: Mapping[str, Any]) -> str:
    """Tell from its options which command left no summary."""
    marks = {"search": "sweep", "objective": "pretrain", "student": "distill", "tasks": "evaluate"}
    return next((command for option, command in marks.items() if option in content), "another command")


def _numbers(path: Path) -> list[dict[str, float]]:
    """Read the records of a training, which must be numbers."""
    records = read_history(path.parent)
    if any(not isinstance(value, int | float) for record in records for value in record.values()):
        raise InputError(f"{path}: a value is not a number. Restore the file from a copy.")
    return records


def _ended(folder: Path, summary: Summary | None) -> datetime | None:
    if summary is None:
        return None
    if summary.ended_at:
        return datetime.fromisoformat(summary.ended_at).astimezone(UTC)
    # Runs of older versions do not say it; a copy of the folder has the time of the copy.
    return datetime.fromtimestamp((folder / SUMMARY_FILE).stat().st_mtime, UTC)


def _scored(folder: Path, problems: list[str]) -> dict[str, Scores]:
    found = {}
    for name in score_names(folder):
        try:
            found[name] = read_scores(folder, name)
        except InputError as error:
            problems.append(str(error))
    return found
