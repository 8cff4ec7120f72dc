"""Write reports of studies: markdown with figures written by the study and text written by hand."""

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import beamclip
from beamclip.summary import git_commit

BEGIN, END = "<!-- figures: written by the study -->", "<!-- end of figures -->"
"""Marks in a report: the text between them is replaced, the text around them stays."""


def write_figures(report: Path, title: str, text: str) -> None:
    """Put text between the marks of a report; a missing report is made, with this title."""
    report.parent.mkdir(parents=True, exist_ok=True)
    before, after = f"# {title}\n\n", "\n"
    if report.exists():
        before, _, rest = report.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
    report.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}")
    print(f"figures written to {report}")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a markdown table, the first row as its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    rule = f"|{'---|' * len(rows[0])}"
    return "\n".join([head, rule, *body])


def circumstances(command: str, *notes: str) -> str:
    """Return a markdown list of command, hardware, notes and versions."""
    lines = [
        f"Command: `{command}`",
        f"Hardware: {_processor()}, {os.cpu_count()} cores",
        *notes,
        f"Versions: beamclip {beamclip.__version__} (commit {(git_commit() or 'unknown')[:12]}), "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def plus_minus(mean: float, spread: float, scale: float = 100.0, digits: int = 1) -> str:
    """Format fractions as percentages, `12.3 ± 0.4`; the mean alone if the spread is NaN."""
    if math.isnan(spread):
        return f"{scale * mean:.{digits}f}"
    return f"{scale * mean:.{digits}f} ± {scale * spread:.{digits}f}"
