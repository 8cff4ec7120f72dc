"""Compare an evaluation with earlier ones: with one on the same images, or with a line through several."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beamclip.commands.console import print_stage
from beamclip.commands.data_set_scores import DataSetScores, named
from beamclip.errors import InputError
from beamclip.evaluation.intervals import LEVEL, RESAMPLES, Figure, resampled
from beamclip.evaluation.results import Scores, read_scores, score_names
from beamclip.evaluation.robustness import LEAST_MODELS, Baseline, fit_baseline
from beamclip.evaluation.scores import compared
from beamclip.summary import read_summary

ACCURACIES = {"zeroshot_top1": "zeroshot", "probe_top1": "probe", "knn20_top1": "knn"}
"""Accuracies that effective robustness is computed of, and the tasks that they are of."""

Lines = Mapping[tuple[str, str], Baseline]
"""The line that each accuracy on each shifted data set is held against, by data set and name."""


@dataclass(frozen=True)
class Robustness:
    """Effective robustness on each data set after the first."""

    figures: dict[str, Figure]
    facts: dict[str, Any]
    """The lines, for the summary."""


def read_other(folder: Path, names: Sequence[str]) -> dict[str, Scores]:
    """Read the scores of another run on the data sets of these names.

    Raises:
        InputError: there are none.
    """
    there = score_names(folder)
    missing = [name for name in names if name not in there]
    if missing and there:
        known = ", ".join(name or "a single one" for name in there)
        wanted = missing[0] or "a single data set"
        raise InputError(
            f"--against {folder}: has no scores on {wanted} (only on: {known}). Give an evaluation of the "
            "same data sets."
        )
    return {name: read_scores(folder, name) for name in names}


def compare(folder: Path, others: Mapping[str, Scores], found: Mapping[str, DataSetScores]) -> dict[str, Any]:
    """Compare each data set's figures with another run's; returns what the summary keeps of it.

    Raises:
        InputError: the other run scored other images.
    """
    figures: dict[str, Any] = {}
    for name, each in found.items():
        ours, theirs = each.scores.facts.data, others[name].facts.data
        if ours.rstrip("/") != theirs.rstrip("/"):
            print_stage("note", f"images are paired by their keys: here of {ours}, there of {theirs}")
        differences = compared(each.scores, others[name], str(folder))
        figures |= named(name, {key: asdict(value) for key, value in differences.items()})
    if not figures:
        raise InputError(
            f"--against {folder}: has no figure in common with this evaluation. Give other --tasks."
        )
    return {"run": str(folder), "figures": figures}


def baseline_lines(folders: Sequence[str], names: Sequence[str], tasks: Sequence[str]) -> Lines:
    """Fit the lines through the accuracies of earlier evaluations.

    Args:
        folders: of these evaluations.
        names: of the data sets, the ordinary one first.
        tasks: whose accuracies are wanted.

    Raises:
        InputError: they are fewer than three, no accuracy is known of all of them on all data sets, or an
            accuracy defines no line.
    """
    if len(folders) < LEAST_MODELS:
        raise InputError(
            f"--baseline: {len(folders)} runs do not define a line. Give {LEAST_MODELS} or more evaluations "
            "of other models on the same data sets."
        )
    known = {folder: read_summary(Path(folder)).metrics for folder in folders}
    wanted = [metric for metric, task in ACCURACIES.items() if task in tasks]
    for folder, metrics in known.items():
        missing = [name for name in names if not any(f"{name}/{each}" in metrics for each in wanted)]
        if missing:
            raise InputError(
                f"--baseline {folder}: has no accuracy on {missing[0]} by --tasks {' '.join(tasks)}. "
                "Evaluate it on the same --data: data sets are named after the last parts of their addresses."
            )
    shared = [
        metric
        for metric in wanted
        if all(isinstance(each.get(f"{name}/{metric}"), float) for each in known.values() for name in names)
    ]
    if not shared:
        raise InputError("--baseline: no accuracy is known of all runs. Evaluate all by the same --tasks.")
    ordinary, *shifted = names
    return {
        (name, metric): _line(
            [(each[f"{ordinary}/{metric}"], each[f"{name}/{metric}"]) for each in known.values()]
        )
        for name in shifted
        for metric in shared
    }


def _line(pairs: Sequence[tuple[Any, Any]]) -> Baseline:
    try:
        return fit_baseline(*zip(*pairs, strict=True))
    except ValueError as error:
        raise InputError(f"--baseline: {error}. Give other runs.") from error


def effective_robustness(
    folders: Sequence[str], lines: Lines, found: Mapping[str, DataSetScores]
) -> Robustness:
    """Compute how far accuracy on each shifted data set exceeds what the baseline predicts.

    The intervals are over the images of both data sets; the line is taken as it is.
    """
    first, *_ = found
    figures: dict[str, Figure] = {}
    facts: dict[str, Any] = {"runs": list(folders), "ordinary": first, "lines": {}}
    for (name, metric), line in lines.items():
        key = f"{name}/effective_robustness_{metric}"
        figures[key] = _beyond(line, found[first], found[name], metric)
        facts["lines"][key] = asdict(line)
    return Robustness(figures, facts)


def _beyond(line: Baseline, ordinary: DataSetScores, shifted: DataSetScores, metric: str) -> Figure:
    drawn = [
        resampled({metric: each.statistics[metric]}, len(each.scores), resamples=RESAMPLES, seed=seed)[metric]
        for seed, each in enumerate((ordinary, shifted))
    ]
    plain = [np.array([each.figures[metric].value]) for each in (ordinary, shifted)]
    values = drawn[1] - line.predict(drawn[0])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(float((plain[1] - line.predict(plain[0]))[0]), float(low), float(high))
