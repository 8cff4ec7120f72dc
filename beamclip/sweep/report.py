"""The report of a sweep: trials.csv, best.yaml, the pictures, and the rows of the final table."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from beamclip.addresses import without_secrets
from beamclip.commands.options import DistillConfig
from beamclip.config import write_config
from beamclip.sweep.plots import plot_heat_maps, plot_learning, plot_parallel
from beamclip.sweep.space import Space, applied, in_words, shown
from beamclip.sweep.trial import Trial, ranked

TRIALS_FILE = "trials.csv"
BEST_FILE = "best.yaml"
SHOWN = 10
"""Trials in the table on the terminal."""


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the best finished trial, else the best one with a score; None if no trial has one."""
    scored = [trial for trial in ranked(trials) if trial.score is not None]
    return scored[0] if scored else None


def write_report(sweep_dir: Path, trials: Sequence[Trial], space: Space, base: DistillConfig) -> list[Path]:
    """Write the report, without pictures that would be empty; return the paths of what was written.

    Args:
        base: the distillation whose options were varied.
    """
    table = _write_csv(sweep_dir / TRIALS_FILE, trials, space)
    plots = sweep_dir / "plots"
    drawn = [
        plot_heat_maps(trials, space, plots / "heat_map.png"),
        plot_parallel(trials, space, plots / "parallel.png"),
        plot_learning(trials, lambda trial: in_words(trial.settings), plots / "learning.png"),
    ]
    written = [table, *(path for path in drawn if path is not None)]
    best = best_of(trials)
    if best is not None:
        # The user chooses the folder of the run.
        write_config(replace(applied(base, best.settings), out=None), sweep_dir / BEST_FILE)
        written.append(sweep_dir / BEST_FILE)
    return written


def table_rows(trials: Sequence[Trial], space: Space) -> list[list[str]]:
    """Return the rows of a table of the best trials, the header first."""
    rows = [["trial", *space, "top-1", "top-5", "step", "seconds", ""]]
    for trial in ranked(trials)[:SHOWN]:
        last = trial.scores[-1] if trial.scores else None
        rows.append(
            [
                trial.name,
                *(shown(trial.settings[name]) for name in space),
                f"{100 * last.zeroshot_top1:.1f} %" if last else "",
                f"{100 * last.zeroshot_top5:.1f} %" if last else "",
                str(trial.step),
                f"{trial.seconds:.0f}",
                "" if trial.status == "finished" else trial.status,
            ]
        )
    return rows


def _write_csv(path: Path, trials: Sequence[Trial], space: Space) -> Path:
    head = ["rank", "trial", "status", "zeroshot_top1", "zeroshot_top5", "step", "steps", "seconds"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *space, "problem"])
        for rank, trial in enumerate(ranked(trials), start=1):
            last = trial.scores[-1] if trial.scores else None
            scores = [last.zeroshot_top1, last.zeroshot_top5] if last else ["", ""]
            values = [shown(trial.settings[name]) for name in space]
            figures = [trial.step, trial.steps, f"{trial.seconds:.1f}"]
            problem = without_secrets(trial.problem or "")
            writer.writerow([rank, trial.name, trial.status, *scores, *figures, *values, problem])
    return path
