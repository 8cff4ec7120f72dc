"""Run the trials of a study, each in a process of its own; results are kept, and no trial runs twice."""

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.study_data import HALVES

from beamclip.training.process import prepare_process


@dataclass(frozen=True)
class Trial:
    """One training of one arm of a study."""

    arm: str
    recipe: Any
    """A dataclass of plain values."""
    seed: int
    noise: float = 0.0
    """Share of the captions that were shuffled, 0..1."""

    @property
    def file_name(self) -> str:
        """Name of the file of its result."""
        plain = "".join(letter if letter.isalnum() else "-" for letter in self.arm)
        return f"{plain}_noise{self.noise:.2f}_seed{self.seed}.json"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON values."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if settings["recipe"].get("objective", "psd") != "psd":
            del settings["recipe"]["psd"]
        return settings


Result = dict[str, Any]
"""Figures by name, with the trial's settings under "trial"."""


def run_trials(
    trials: Sequence[Trial], run: Callable[[Trial, Path], Result], emoji: Path, out: Path, jobs: int
) -> list[Result]:
    """Run trials and return their results; a trial with a result in `out` for the same settings is skipped.

    Args:
        trials: what to run.
        run: a function of a module that runs a trial on the emoji in a folder; called in a fresh process of
            one thread.
        emoji: folder of the emoji.
        out: folder of the results.
        jobs: trials at a time.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept = [_read(trial, out) for trial in trials]
    results = [result for result in kept if result]
    missing = [trial for trial, result in zip(trials, kept, strict=True) if not result]
    print(f"{len(trials)} trials, {len(results)} of them in {out}", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        running = {pool.submit(_alone, run, trial, emoji): trial for trial in missing}
        for future in as_completed(running):
            trial, result = running[future], future.result()
            results.append(result)
            draft = out / f"{trial.file_name}.draft"
            draft.write_text(json.dumps(result, indent=2))
            draft.replace(out / trial.file_name)
            top1 = f"zero-shot {100 * result['zeroshot_top1']:.1f} %"
            left = f"{len(trials) - len(results)} to go"
            name = f"{trial.arm}, {trial.noise:.0%} noise, seed {trial.seed}"
            print(f"{name}: {top1}, {result['seconds']:.0f} s; {left}", flush=True)
    return results


def _read(trial: Trial, out: Path) -> Result | None:
    file = out / trial.file_name
    if not file.exists():
        return None
    result: Result = json.loads(file.read_text())
    return result if result["trial"] == trial.settings else None


def _alone(run: Callable[[Trial, Path], Result], trial: Trial, emoji: Path) -> Result:
    prepare_process(threads=1, seed=trial.seed)
    began = time.perf_counter()
    result = run(trial, emoji)
    return {**result, "seconds": time.perf_counter() - began, "trial": trial.settings}


def results_of(results: list[Result], arm: str, noise: float = 0.0) -> list[Result]:
    """Return the results of one arm at one share of noise."""
    return [r for r in results if (r["trial"]["arm"], r["trial"]["noise"]) == (arm, noise)]


def keep_scores(results: list[Result], report: Path) -> None:
    """Write arm, seed and scores of every training beside a report, for readers who want other tables."""
    kept = [
        {
            "arm": result["trial"]["arm"],
            "noise": result["trial"]["noise"],
            "seed": result["trial"]["seed"],
            **{
                half: {name: round(value, 5) for name, value in result[half].items()}
                for half in HALVES
                if half in result
            },
        }
        for result in sorted(results, key=lambda r: [r["trial"][k] for k in ("arm", "noise", "seed")])
    ]
    report.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
