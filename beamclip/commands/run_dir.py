"""The folder of a run: where it lies, when it may be written to, what it remembers between two starts."""

import json
import time
from pathlib import Path
from typing import Any

from beamclip.errors import InputError
from beamclip.training.launch import has_checkpoint

CONFIG_FILE = "config.yaml"
HISTORY_FILE = "metrics.jsonl"
TRACKING_FILE = "mlflow_run.json"
PLOTS = "plots"
MODEL = "model"


def new_run_dir(out: Path | None, command: str) -> Path:
    """`out`, or a new folder below runs/ that is named after the command and the minute."""
    return out if out is not None else Path("runs") / f"{command}-{time.strftime('%m%d-%H%M%S')}"


def open_run_dir(run_dir: Path, *, resume: bool) -> Path:
    """Make a run's folder, or go on in one that has a checkpoint.

    Raises:
        InputError: a new run would mix with an older one, or there is nothing to go on from.
    """
    if resume and not has_checkpoint(run_dir):
        raise InputError(f"--resume {run_dir}: no checkpoint there. Start the run without --resume.")
    if not resume and has_checkpoint(run_dir):
        raise InputError(
            f"--out {run_dir}: holds the checkpoints of an earlier run. "
            f"Go on with it by --resume {run_dir}, or give another --out."
        )
    (run_dir / PLOTS).mkdir(parents=True, exist_ok=True)
    return run_dir


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The records of a run so far, oldest first."""
    path = run_dir / HISTORY_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_history(run_dir: Path, record: dict[str, float]) -> None:
    """Add one record to the run's own copy of its metrics."""
    with (run_dir / HISTORY_FILE).open("a") as file:
        file.write(json.dumps(record) + "\n")


def tracked_run_id(run_dir: Path) -> str | None:
    """The MLflow run that this folder belongs to, if it was tracked before."""
    path = run_dir / TRACKING_FILE
    run_id: Any = json.loads(path.read_text())["run_id"] if path.exists() else None
    return run_id


def remember_tracked_run(run_dir: Path, run_id: str | None) -> None:
    """Note the MLflow run, so that a resumed run goes on in it."""
    if run_id is not None:
        (run_dir / TRACKING_FILE).write_text(json.dumps({"run_id": run_id}) + "\n")
