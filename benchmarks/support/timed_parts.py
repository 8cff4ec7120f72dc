"""Parts of a benchmark that must end in time: each in a process of its own, whose figures outlive it."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from beamclip.json_lines import read_json_lines

GRACE_SECONDS = 5.0
"""Left of the whole for the table at the end."""


@dataclass(frozen=True)
class Report:
    """Figures as they become known: printed with the seconds so far, and kept in a file."""

    file: Path
    began: float
    """By time.time, the same clock for all processes."""
    ends: float
    """When everything must have ended."""

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.ends - GRACE_SECONDS - time.time()

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"[{time.time() - self.began:6.1f} s] {text}", flush=True)

    def figure(self, name: str, value: Any) -> None:
        """Print and keep a figure."""
        self.say(f"{name}: {shown(value)}")
        with self.file.open("a") as file:
            file.write(json.dumps({"name": name, "value": value}) + "\n")

    def figures(self) -> dict[str, Any]:
        """Return all figures so far by name."""
        found = read_json_lines(self.file) if self.file.exists() else []
        return {each["name"]: each["value"] for each in found}

    def attempt(self, name: str, least: float, body: Callable[[], None]) -> None:
        """Call `body` unless less than `least` seconds are left; its error is a figure, and ends nothing."""
        if self.left < least:
            self.figure(name, f"skipped: {self.left:.0f} s left, {least:.0f} s needed")
            return
        try:
            body()
        except Exception as error:
            traceback.print_exc()
            self.figure(name, f"failed: {type(error).__name__}: {error}"[:300])


def shown(value: Any) -> str:
    """Format a figure for the terminal."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def run_part(report: Report, name: str, least: float, body: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in a fresh process, and end it with all of its own when time is up."""

    def watched() -> None:
        report.say(f"== {name} (about {least:.0f} s)")
        process = get_context("spawn").Process(target=body, args=(report, *arguments))
        process.start()
        process.join(max(1.0, report.left))
        if process.is_alive():
            _end_tree(process.pid)
            process.join()
            raise TimeoutError("ended, since time was up")
        if process.exitcode:
            raise RuntimeError(f"ended with exit code {process.exitcode}")

    report.attempt(name, least, watched)


def _end_tree(pid: int | None) -> None:
    root = psutil.Process(pid)
    family = [*root.children(recursive=True), root]
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, 5.0)
