"""Show the figures of an evaluation: a table with intervals, and pictures."""

from collections.abc import Mapping
from pathlib import Path

from beamclip.commands.console import percent, table
from beamclip.commands.data_set_scores import DataSetScores
from beamclip.evaluation.scores import class_accuracies, worst_classes
from beamclip.evaluation.statistic import CalibrationError, reliability
from beamclip.summary import Summary

PLAIN = ("agreement_kl", "agreement_cosine")
"""Ends of the names of figures that are no shares, nor differences of shares."""


def show_figures(summary: Summary) -> None:
    """Print a table of an evaluation's figures, with the differences to another run if there is one."""
    rows = [["metric", "value", "95 % interval"]]
    for name, (low, high) in summary.intervals.items():
        value = summary.metrics[name]
        assert value is not None, "only what was read back from a file can be None"
        rows.append([name, _value(name, value), f"{_number(name, low)} to {_number(name, high)}"])
    table(rows)
    against = summary.stages.get("against")
    if against:
        print(f"\nagainst {against['run']}, on the same images:")
        rows = [["metric", "difference", "95 % interval", "verdict"]]
        for name, each in against["figures"].items():
            ends = f"{_number(name, each['low'], '+')} to {_number(name, each['high'], '+')}"
            rows.append([name, _number(name, each["value"], "+"), ends, each["verdict"]])
        table(rows)


def draw_scores(found: Mapping[str, DataSetScores], plots: Path) -> None:
    """Draw per-class accuracy and calibration of each data set that has zero-shot predictions."""
    # Importing matplotlib takes half a second, for which scoring need not wait.
    from beamclip.plots.scores import plot_classes, plot_reliability

    for data_set, each in found.items():
        scores = each.scores
        if scores.labels is None or "zeroshot" not in scores.ranks:
            continue
        suffix = f"-{data_set}" if data_set else ""
        names = dict(zip(scores.facts.class_ids, scores.facts.class_names, strict=True))
        worst = [
            {**row, "mistaken": names[row["taken_for"][0][0]] if row["taken_for"] else ""}
            for row in worst_classes(scores)
        ]
        top1 = each.figures["zeroshot_top1"]
        title = f"Zero-shot top-1, class by class: {percent(top1.value, top1.interval)}"
        plot_classes(class_accuracies(scores), worst, title, plots / f"classes{suffix}.png")
        curves = {}
        for name, label in _CALIBRATION.items():
            statistic, error = each.statistics[name], each.figures[name]
            assert isinstance(statistic, CalibrationError)
            bins = reliability(statistic)
            title = f"{label}\ncalibration error {percent(error.value, error.interval)}"
            curves[title] = (bins.confidence, bins.accuracy)
        plot_reliability(curves, plots / f"calibration{suffix}.png")


_CALIBRATION = {
    "calibration_error": "at the temperature 0.01",
    "calibration_error_own_scale": "at the model's own scale",
}


def _is_plain(name: str) -> bool:
    return name.endswith(PLAIN)


def _value(name: str, value: float) -> str:
    if name.endswith("agreement_kl"):
        return f"{value:.3f} nats"
    return f"{value:.3f}" if _is_plain(name) else percent(value)


def _number(name: str, value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if _is_plain(name) else f"{100 * value:{sign}.1f}"
