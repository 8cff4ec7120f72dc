"""Where a run comes from: the folders that its options name, and those that theirs name, if they are here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beamclip.errors import InputError
from beamclip.files import read_json, read_yaml
from beamclip.places import is_address
from beamclip.report.scores import percent_text
from beamclip.runs.folder import CONFIG_FILE
from beamclip.summary import SUMMARY_FILE, Summary, read_summary
from beamclip.tracking import run_dir_of

MOST_STEPS = 12
"""Longest way from a run to a source."""
KINDS = {
    "ingest": "Shards, by ingest",
    "embed": "Teacher cache, by embed",
    "pretrain": "Model, by pretrain",
    "distill": "Student, by distill",
    "interpolate": "Average of two models, by interpolate",
    "evaluate": "Scores, by evaluate",
    "sweep": "Sweep",
}
SOURCES = {
    "urls": "URL list",
    "data": "Data",
    "train_data": "Training data of the probe",
    "eval_data": "Labelled data",
    "teacher": "Teacher",
    "more_teachers": "Further teacher",
    "vision_teachers": "Vision teacher",
    "model": "Model",
    "towards": "Second model",
    "init": "Initial weights",
    "classes": "Class list",
}
"""Options that name what a step was made from, and what it is where its folder says nothing of itself."""
MODELS = {SOURCES[option] for option in ("teacher", "more_teachers", "model", "towards", "init")}
"""What a run may have left in a folder of its own, as RUN/model."""
ARCHITECTURES = ("pretrain",)
"""Commands whose option `model` names an architecture, and no source."""


@dataclass(frozen=True)
class Step:
    """A step of the way from a URL list to weights."""

    kind: str
    place: str
    facts: tuple[str, ...]
    sources: tuple["Step", ...]


@dataclass(frozen=True)
class SampleRow:
    """How many samples one step used, failed to use or left out."""

    step: str
    attempted: int
    succeeded: int
    reasons: tuple[tuple[str, int], ...]


def lineage(folder: Path) -> Step:
    """Return the folder of a run as the last step of its way."""
    return _step("Run", str(folder.resolve()), ())


def sample_rows(step: Step) -> tuple[SampleRow, ...]:
    """Return the counts of samples of a step and all steps before it, each folder once."""
    rows = {}
    for each in _walk(step):
        summary = _summary(Path(each.place))
        if summary and summary.counts.attempted and summary.command != "sweep":
            counts = summary.counts
            reasons = {**counts.failed, **counts.skipped}
            rows[each.place] = SampleRow(
                f"{each.kind}: {Path(each.place).name}",
                counts.attempted,
                counts.succeeded,
                tuple(sorted(reasons.items(), key=lambda item: -item[1])),
            )
    return tuple(rows.values())


def _walk(step: Step) -> Iterator[Step]:
    yield step
    for source in step.sources:
        yield from _walk(source)


def _step(kind: str, place: str, seen: Sequence[str]) -> Step:
    folder = _run_of(Path(place)) if kind in MODELS else Path(place)
    summary = None if is_address(place) else _summary(folder)
    if summary is None and not (kind == "Run" and (folder / CONFIG_FILE).exists()):
        return Step(kind, place, (), ())
    options = _options(folder)
    command = summary.command if summary else ""
    sources = [] if place in seen or len(seen) >= MOST_STEPS else _sources(options, command)
    return Step(
        KINDS.get(command, kind),
        place,
        tuple(_facts(folder, summary)) if summary else (),
        tuple(_step(name, source, (*seen, place)) for name, source in sources),
    )


def _run_of(model: Path) -> Path:
    """Return the folder of the run that a model's path names or lies in, or the path itself."""
    return (run_dir_of(model) if model.exists() else None) or model


def _sources(options: Mapping[str, Any], command: str) -> list[tuple[str, str]]:
    found = []
    for option, kind in SOURCES.items():
        if option == "model" and command in ARCHITECTURES:
            continue
        value = options.get(option)
        places = value if isinstance(value, list) else [value] if value else []
        found += [(kind, str(place)) for place in places]
    return found


def _facts(folder: Path, summary: Summary) -> Iterator[str]:
    counts = summary.counts
    if summary.command in ("ingest", "embed"):
        yield f"{counts.succeeded:,} of {counts.attempted:,} images"
    elif summary.images:
        yield f"{summary.images:,} images"
    top1 = summary.metrics.get("zeroshot_top1")
    if top1 is not None:
        yield f"zero-shot top-1 {percent_text(top1)}"
    if summary.ended_at:
        yield summary.ended_at[:10]
    if summary.git_commit:
        yield f"commit {summary.git_commit[:10]}{'+dirty' if summary.git_commit.endswith('+dirty') else ''}"
    if summary.mlflow_run_id:
        yield f"MLflow run {summary.mlflow_run_id}"
    fingerprint = _fingerprint(folder)
    if fingerprint:
        yield f"teacher {fingerprint[:12]}"


def _fingerprint(folder: Path) -> str:
    """Hash of the first teacher of a cache; empty for other folders."""
    path = folder / "cache.json"
    try:
        return str(read_json(path)["teachers"][0]["fingerprint"]) if path.exists() else ""
    except (InputError, KeyError, IndexError, TypeError):
        return ""


def _summary(folder: Path) -> Summary | None:
    try:
        return read_summary(folder) if (folder / SUMMARY_FILE).exists() else None
    except (InputError, OSError):  # a file system may refuse to look
        return None


def _options(folder: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(folder / CONFIG_FILE)
    except InputError:
        return {}
    if not isinstance(content, dict):
        return {}
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat
