"""Run public commands on this machine, from a benchmark."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from beamclip.tracking.place import DATABASE, sqlite_uri

ROOT = Path(__file__).parents[2]
LAST_LINES = 12
"""Lines of a failed command's log that its error quotes."""


def run_pipeline(name: str, options: list[Any], out: Path, *, timeout: float | None = None) -> None:
    """Run a public command on this machine; append its output to a log in `out`.

    Args:
        timeout: seconds after which it is killed.

    Raises:
        RuntimeError: it failed.
        subprocess.TimeoutExpired: it took too long.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["MLFLOW_TRACKING_URI"] = sqlite_uri(out.resolve() / DATABASE)
    log = out / f"{name}.log"
    command = [sys.executable, ROOT / "pipelines" / f"{name}.py", *options]
    with log.open("a") as file:
        done = subprocess.run(
            [str(word) for word in command],
            stdout=file,
            stderr=file,
            env=environment,
            cwd=out,
            check=False,
            timeout=timeout,
        )
    if done.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise RuntimeError(
            f"pipelines/{name}.py ended with exit code {done.returncode}; end of {log}:\n{last}"
        )


def rates_of(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Return images per second and the share of time waiting for data, over some records of a run."""
    seconds = sum(record["window_seconds"] for record in records)
    images = sum(record["images_per_second"] * record["window_seconds"] for record in records)
    waited = sum(record["data_wait_share"] * record["window_seconds"] for record in records)
    return images / seconds, waited / seconds
