"""The records of a run: in its folder and in MLflow, each step once."""

import json
from pathlib import Path
from typing import Any

from beamclip.files import write_whole
from beamclip.json_lines import read_json_lines
from beamclip.runs.folder import HISTORY_FILE
from beamclip.tracking import Tracking


class Recorder:
    """Keeps the records of a run in its folder and in MLflow, each step once."""

    def __init__(self, run_dir: Path, tracking: Tracking) -> None:
        self.run_dir = run_dir
        self.tracking = tracking
        self._logged_step = max((int(record["step"]) for record in read_history(run_dir)), default=0)

    def rewind(self, step: int) -> list[dict[str, float]]:
        """Drop the records after `step`, where training continues; return those up to it."""
        return rewind_history(self.run_dir, step)

    def keep(self, record: dict[str, Any]) -> None:
        """Add a record to the folder, and to MLflow unless its step was logged before."""
        append_history(self.run_dir, record)
        # After a restart, the steps since the last checkpoint come a second time; MLflow forgets nothing.
        if record["step"] > self._logged_step:
            self._logged_step = int(record["step"])
            self.tracking.log([{key: value for key, value in record.items() if key != "pid"}])


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """Return the records of a run so far, oldest first."""
    return read_json_lines(run_dir / HISTORY_FILE)


def append_history(run_dir: Path, record: dict[str, float]) -> None:
    """Add one record to the run's own copy of its metrics."""
    with (run_dir / HISTORY_FILE).open("a") as file:
        file.write(json.dumps(record) + "\n")


def rewind_history(run_dir: Path, step: int) -> list[dict[str, float]]:
    """Remove the records after `step`, to which training went back; return the others."""
    records = read_history(run_dir)
    kept = [record for record in records if record["step"] <= step]
    if len(kept) < len(records):
        write_whole(run_dir / HISTORY_FILE, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
