"""Scores with their intervals, as bars."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from beamclip.report.run_files import RunFiles

TASKS = {
    "zeroshot": "Zero-shot",
    "probe": "Linear probe",
    "knn": "Nearest neighbours",
    "retrieval": "Retrieval",
    "agreement": "Agreement with the teacher",
    "calibration": "Calibration error (lower is better)",
}
ROLES = {"distill": "student", "sweep": "best trial"}
"""What the scores of a command are of, where it is not just a model."""
_SHARE = re.compile(
    r"(?!.*effective_robustness)(?P<data>.*?)(?P<teacher>teacher_)?(?P<task>zeroshot|probe|knn|retrieval|agreement|calibration)"
    r"(?P<rest>\d*_(?:mean_class_|i2t_|t2i_)?(?:top\d+|r\d+|error(?:_own_scale)?))"
)
_WORDS = {
    r"^mean_class_top(\d+)$": r"top-\1, mean over the classes",
    r"^top(\d+)$": r"top-\1",
    r"^i2t_r(\d+)$": r"image to text, R@\1",
    r"^t2i_r(\d+)$": r"text to image, R@\1",
    r"^error$": "at the temperature 0.01",
    r"^error_own_scale$": "at the model's own temperature",
}
_AXES = (0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Bar:
    """One figure of one model."""

    label: str
    series: int
    """Index of its colour."""
    faint: bool
    """Whether it is of a teacher beside its student's run."""
    text: str
    """Value and interval in words."""
    width: float
    """Share of the axis, percent."""
    low: float | None
    """Where its interval begins, percent of the axis; None without one."""
    span: float
    """Width of the interval, percent of the axis."""


@dataclass(frozen=True)
class Figure:
    """A figure of all models that have it."""

    title: str
    bars: tuple[Bar, ...]
    chance: float | None
    """Where chance lies, percent of the axis; None if it is not known."""
    chance_text: str


@dataclass(frozen=True)
class Task:
    """The figures of one task on one data set, on one axis from 0."""

    title: str
    end: str
    """Value at the end of the axis."""
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Against:
    """Differences to another run on the same images."""

    run: str
    rows: tuple[tuple[str, str, str], ...]
    """Figure, difference with its interval, and what it says: better, worse or cannot tell."""


@dataclass(frozen=True)
class ScoreSection:
    """All scores: those that are shares as bars, the others as a table of texts, a row for each figure."""

    tasks: tuple[Task, ...]
    others: tuple[tuple[str, ...], ...]
    against: Against | None
    runs: tuple[str, ...]
    has_intervals: bool


@dataclass(frozen=True)
class _Value:
    label: str
    series: int
    faint: bool
    value: float
    interval: tuple[float, float] | None


def score_section(runs: Sequence[RunFiles]) -> ScoreSection | None:
    """Return the scores of the runs; None without any."""
    found: dict[tuple[str, str], dict[str, list[_Value]]] = {}
    for place, run in enumerate(runs):
        for name, value in run.metrics.items():
            match = _SHARE.fullmatch(name)
            if match:
                task = found.setdefault((match["data"].strip("_/"), match["task"]), {})
                bars = task.setdefault(match["task"] + match["rest"], [])
                bars.append(_value(runs, place, name, value, of_teacher=bool(match["teacher"])))
    order = list(TASKS)
    tasks = [
        _task(data, task, figures, runs)
        for (data, task), figures in sorted(found.items(), key=lambda each: order.index(each[0][1]))
    ]
    others = _others(runs)
    if not tasks and not others:
        return None
    has_intervals = any(run.summary and run.summary.intervals for run in runs)
    against = _against(runs[0]) if len(runs) == 1 else None
    return ScoreSection(tuple(tasks), others, against, tuple(run.label for run in runs), has_intervals)


def percent_text(value: float, interval: tuple[float, float] | None = None) -> str:
    """Format a share: `14.1 %`, or `14.1 % (12.5 to 15.6)` with its interval."""
    text = f"{100 * value:.1f} %"
    return f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else text


def metric_title(name: str) -> str:
    """Say what a figure is called: `zeroshot_top1` is `top-1`, `retrieval_i2t_r5` is `image to text, R@5`."""
    _, _, rest = name.partition("_")
    if name.startswith("knn"):
        neighbours = re.sub(r"\D", "", name.partition("_")[0])
        return f"top-1, {neighbours} neighbours" if neighbours else "top-1"
    for pattern, text in _WORDS.items():
        rest = re.sub(pattern, text, rest)
    return rest


def _value(runs: Sequence[RunFiles], place: int, name: str, value: float, *, of_teacher: bool) -> _Value:
    run = runs[place]
    role = "teacher" if of_teacher else ROLES.get(run.command, "model")
    label = role if len(runs) == 1 else f"{run.label}, teacher" if of_teacher else run.label
    series = place if len(runs) > 1 else 1 if of_teacher else 0
    return _Value(label, series, of_teacher and len(runs) > 1, value, _interval(name, run))


def _task(data: str, task: str, figures: dict[str, list[_Value]], runs: Sequence[RunFiles]) -> Task:
    highest = max(
        max(each.value, each.interval[1] if each.interval else 0.0)
        for row in figures.values()
        for each in row
    )
    end = next((axis for axis in _AXES if highest <= axis), 1.0)
    title = f"{TASKS[task]}: {data}" if data else TASKS[task]
    rows = []
    for name, values in figures.items():
        chance = _chance(name, data, runs)
        shown = chance if chance is not None and chance <= end else None
        rows.append(
            Figure(
                metric_title(name),
                tuple(_bar(each, end) for each in values),
                None if shown is None else 100 * shown / end,
                "" if shown is None else f"chance {percent_text(shown)}",
            )
        )
    return Task(title, f"{100 * end:g} %", tuple(rows))


def _bar(each: _Value, end: float) -> Bar:
    low, high = each.interval or (0.0, 0.0)
    return Bar(
        each.label,
        each.series,
        each.faint,
        percent_text(each.value, each.interval),
        round(100 * min(each.value, end) / end, 2),
        round(100 * low / end, 2) if each.interval else None,
        round(100 * (high - low) / end, 2),
    )


def _chance(name: str, data: str, runs: Sequence[RunFiles]) -> float | None:
    """Accuracy of guessing among all classes; None where their number is not known or has no role."""
    scored = next((run.scored[data] for run in runs if data in run.scored), None)
    sheet = next((run.sheet for run in runs if run.sheet), None)
    classes = len(scored.facts.class_names) if scored else sheet.classes if sheet else 0
    match = re.fullmatch(r"(?:zeroshot|probe|knn\d*)_top(\d+)", name)
    return min(1.0, int(match[1]) / classes) if match and classes else None


def _others(runs: Sequence[RunFiles]) -> tuple[tuple[str, ...], ...]:
    """Return a row for each figure that is no share: its name, then its value in each run."""
    names = {
        name: None
        for run in runs
        for name in run.metrics
        if not _SHARE.fullmatch(name) and not (name.startswith("loss/") and _repeats_loss(runs, name))
    }
    rows = []
    for name in names:
        texts = ("" if name not in run.metrics else _number(name, run) for run in runs)
        rows.append((name.replace("_", " ").replace("top1", "top-1"), *texts))
    return tuple(rows)


def _repeats_loss(runs: Sequence[RunFiles], name: str) -> bool:
    """Whether a term of the loss is all of it, in all runs that have it."""
    return all(run.metrics[name] == run.metrics.get("loss") for run in runs if name in run.metrics)


def _against(run: RunFiles) -> Against | None:
    """Return what `beamclip evaluate --against` found; None without it."""
    noted = run.summary.stages.get("against") if run.summary else None
    if not isinstance(noted, dict) or not isinstance(noted.get("figures"), dict):
        return None
    rows = []
    for name, each in noted["figures"].items():
        ends = (each["low"], each["high"])
        interval = None if None in ends else ends
        text = (
            _points(each["value"], interval) if _SHARE.fullmatch(name) else _signed(each["value"], interval)
        )
        rows.append((name.replace("_", " "), text, str(each["verdict"])))
    return Against(str(noted.get("run", "")), tuple(rows))


def _points(value: float, interval: tuple[float, float] | None) -> str:
    ends = f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" if interval else ""
    return f"{100 * value:+.1f} points{ends}"


def _signed(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:+.3g}{f' ({interval[0]:+.3g} to {interval[1]:+.3g})' if interval else ''}"


def _number(name: str, run: RunFiles) -> str:
    value, interval = run.metrics[name], _interval(name, run)
    if name.startswith("retained"):
        return f"{percent_text(value, interval)} of the teacher's"
    if "effective_robustness" in name:
        return _points(value, interval)
    text = f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.4g}"
    return f"{text} ({interval[0]:.4g} to {interval[1]:.4g})" if interval else text


def _interval(name: str, run: RunFiles) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure; None if it has none that is finite."""
    held = run.summary.intervals.get(name) if run.summary else None
    return (float(held[0]), float(held[1])) if held and None not in held else None
