"""`summary.json`: what a command did, in one small file with stable keys.

Scripts, the sweep and the documentation read these keys, so keys are only ever added. The file is strict
JSON: a figure that is not finite becomes null and is named in `notes`.
"""

import json
import math
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import beamclip
from beamclip.addresses import without_secrets
from beamclip.errors import InputError
from beamclip.files import parse_json, read_text, write_whole

SUMMARY_FILE = "summary.json"

LIBRARIES = ("torch", "torchvision", "ray", "open_clip_torch", "timm", "mlflow", "img2dataset", "pyarrow")
"""Distributions whose versions can change results."""

Status = Literal["finished", "failed", "interrupted"]


def library_versions() -> dict[str, str]:
    """Return the versions of beamclip and of each installed library of `LIBRARIES`."""
    versions = {"beamclip": beamclip.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(root: Path | None = None) -> str | None:
    """Return the commit of the checkout at `root`, with "+dirty" after it if tracked files were changed.

    Args:
        root: top folder of the checkout; by default the folder beamclip was imported from.

    Returns:
        40 hex digits, perhaps with the suffix; without a checkout, what BEAMCLIP_COMMIT holds: whoever
        submits a job sets it. None without either, without a commit, or without git.
    """
    root = root or Path(beamclip.__file__).parents[1]
    # Without this test an installed package would report the commit of whatever checkout surrounds it.
    if not (root / ".git").exists():
        return os.environ.get("BEAMCLIP_COMMIT") or None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if changed else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@dataclass(frozen=True)
class Counts:
    """How many samples were used, failed or were skipped."""

    attempted: int = 0
    succeeded: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """Samples that could not be used, by reason."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples left out on purpose, by reason."""


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`."""

    command: str
    """Name of the pipeline, e.g. "distill"."""
    status: Status
    wall_seconds: float
    images: int = 0
    """Images that were processed, counted in every epoch."""
    images_per_second: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Final figures; accuracies and recalls are fractions in 0..1."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """For figures that were measured on images: the lower and the upper end of the 95 % interval."""
    counts: Counts = field(default_factory=Counts)
    versions: dict[str, str] = field(default_factory=library_versions)
    git_commit: str | None = field(default_factory=git_commit)
    mlflow_run_id: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    """What was written: name to path or address."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Further figures, which differ between commands; JSON types only."""
    notes: list[str] = field(default_factory=list)
    ended_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the command ended, ISO 8601 in UTC; empty in summaries of versions that did not note it."""


def write_summary(run_dir: Path, summary: Summary) -> Path:
    """Write `run_dir`/summary.json in one step: a reader sees the old file or the new one, never a part.

    Raises:
        TypeError: a value has no JSON form (a tensor, a Path).
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / SUMMARY_FILE
    write_whole(path, summary_text(summary))
    return path


def summary_text(summary: Summary) -> str:
    """Return the text of summary.json.

    Raises:
        TypeError: a value has no JSON form (a tensor, a Path).
    """
    notes: list[str] = []
    record = _finite(asdict(summary), "", notes)
    record["notes"] += notes
    return without_secrets(json.dumps(record, indent=2, allow_nan=False)) + "\n"


def read_summary(run_dir: Path) -> Summary:
    """Read the summary that `write_summary` wrote in `run_dir`.

    Raises:
        InputError: there is no summary, or the file is not one.
    """
    path = run_dir / SUMMARY_FILE
    if not path.exists():
        raise InputError(f"{path}: cannot be read (no such file). Name the --out folder of a run.")
    record = parse_json(read_text(path), str(path))
    try:
        record["counts"] = Counts(**record["counts"])
        record.setdefault("ended_at", "")
        record["intervals"] = {name: tuple(ends) for name, ends in record.get("intervals", {}).items()}
        known = {item.name for item in fields(Summary)}
        # Keys of a newer version are passed over: the known ones keep their meaning.
        return Summary(**{key: value for key, value in record.items() if key in known})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a summary of beamclip ({error}). Run the command again.") from error


def _finite(value: Any, where: str, notes: list[str]) -> Any:
    """`value` with None in place of each NaN or infinity; what was met goes to `notes`."""
    if isinstance(value, float) and not math.isfinite(value):
        notes.append(f"{where} was {value} and is written as null")
        return None
    if isinstance(value, Mapping):
        return {
            key: _finite(item, f"{where}.{key}" if where else str(key), notes) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_finite(item, f"{where}[{i}]", notes) for i, item in enumerate(value)]
    return value
