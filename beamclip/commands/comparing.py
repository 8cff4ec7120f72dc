"""Compare an evaluation with earlier ones: with one on the same images, or with a line through several."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beamclip.commands.data_set_scores import DataSetScores, named
from beamclip.errors import InputError
from beamclip.evaluation.intervals import LEVEL, RESAMPLES, Figure, resampled
from beamclip.evaluation.results import Scores, read_scores, score_names
from beamclip.evaluation.robustness import LEAST_MODELS, Baseline, fit_baseline
from beamclip.evaluation.scores import compared
from beamclip.summary import Summary, read_summary

ACCURACIES = ("zeroshot_top1", "probe_top1", "knn20_top1")
"""Accuracies that effective robustness is computed of."""


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
    if missing and there and names != [""]:
        raise InputError(
            f"--against {folder}: has no scores on {missing[0]} (only on: {', '.join(there)}). Give an "
            "evaluation of the same data sets."
        )
    return {name: read_scores(folder, name) for name in names}


def compare(folder: Path, others: Mapping[str, Scores], found: Mapping[str, DataSetScores]) -> dict[str, Any]:
    """Compare each data set's figures with another run's; returns what the summary keeps of it.

    Raises:
        InputError: the other run scored other images.
    """
    figures: dict[str, Any] = {}
    for name, each in found.items():
        differences = compared(each.scores, others[name], str(folder))
        figures |= named(name, {key: asdict(value) for key, value in differences.items()})
    if not figures:
        raise InputError(
            f"--against {folder}: has no figure in common with this evaluation. Give other --tasks."
        )
    return {"run": str(folder), "figures": figures}


def check_baseline(folders: Sequence[str], names: Sequence[str]) -> list[Summary]:
    """Read the summaries of the evaluations behind a baseline.

    Raises:
        InputError: they are fewer than three, or one lacks an accuracy on a data set.
    """
    if len(folders) < LEAST_MODELS:
        raise InputError(
            f"--baseline: {len(folders)} runs do not define a line. Give {LEAST_MODELS} or more evaluations "
            "of other models on the same data sets."
        )
    summaries = [read_summary(Path(folder)) for folder in folders]
    for folder, summary in zip(folders, summaries, strict=True):
        missing = [
            name for name in names if not any(f"{name}/{each}" in summary.metrics for each in ACCURACIES)
        ]
        if missing:
            raise InputError(
                f"--baseline {folder}: has no accuracy on {missing[0]}. Evaluate it on the same --data: the "
                "last parts of their addresses are the names of data sets."
            )
    return summaries


def effective_robustness(folders: Sequence[str], found: Mapping[str, DataSetScores]) -> Robustness:
    """Compute how far accuracy on each shifted data set exceeds what the baseline predicts.

    The intervals are over the images of both data sets; the line is taken as it is.

    Raises:
        InputError: the baseline defines no line.
    """
    summaries = check_baseline(folders, [*found])
    first, *shifted = found
    figures: dict[str, Figure] = {}
    facts: dict[str, Any] = {"runs": list(folders), "ordinary": first, "lines": {}}
    for name in shifted:
        for metric in ACCURACIES:
            known = [_pair(summary, metric, first, name) for summary in summaries]
            if metric not in found[name].statistics or None in known:
                continue
            ordinary, others = zip(*(pair for pair in known if pair), strict=True)
            try:
                line = fit_baseline(ordinary, others)
            except ValueError as error:
                raise InputError(f"--baseline: {error}. Give other runs.") from error
            key = f"{name}/effective_robustness_{metric}"
            figures[key] = _beyond(line, found[first], found[name], metric)
            facts["lines"][key] = asdict(line)
    return Robustness(figures, facts)


def _pair(summary: Summary, metric: str, ordinary: str, shifted: str) -> tuple[float, float] | None:
    values = [summary.metrics.get(f"{name}/{metric}") for name in (ordinary, shifted)]
    return None if values[0] is None or values[1] is None else (values[0], values[1])


def _beyond(line: Baseline, ordinary: DataSetScores, shifted: DataSetScores, metric: str) -> Figure:
    drawn = [
        resampled({metric: each.statistics[metric]}, len(each.scores), resamples=RESAMPLES, seed=seed)[metric]
        for seed, each in enumerate((ordinary, shifted))
    ]
    plain = [np.array([each.figures[metric].value]) for each in (ordinary, shifted)]
    values = drawn[1] - line.predict(drawn[0])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(float((plain[1] - line.predict(plain[0]))[0]), float(low), float(high))
