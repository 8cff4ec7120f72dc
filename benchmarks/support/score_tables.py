"""Arms of a study beside others: their scores and differences on test data, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from support.paired import Pair, compared, difference, mean_on_test, on_test
from support.trials import Result, results_of

from beamclip.plots.style import BLUE, MUTED, save_figure, styled


def score_table(found: list[Result], pairs: Sequence[Pair], scores: Mapping[str, str]) -> list[list[str]]:
    """Build a row for each pair of arms: each score of the first, and below it its difference to the other.

    P-values are adjusted in each column by Holm's method. A pair of an arm with itself has no difference.

    Args:
        scores: heads of the columns by the names of the scores.
    """
    apart = [pair for pair in pairs if pair.arm != pair.other]
    cells = {score: compared(found, apart, score) for score in scores}
    rows = [["arm", "against", *scores.values(), "CPU s"]]
    for pair in pairs:
        row = [pair.arm, pair.other if pair in apart else ""]
        for score in scores:
            own = [mean_on_test(found, pair.arm, score), cells[score].get(pair, "")]
            row.append("<br>".join(filter(None, own)))
        seconds = np.median([result["cpu_seconds"] for result in results_of(found, pair.arm)])
        rows.append([*row, f"{seconds:.0f}"])
    return rows


def plot_differences(
    found: list[Result], arms: Sequence[str], other: str, scores: Mapping[str, str], out: Path
) -> None:
    """Plot the differences of arms to another arm, one panel a score, with intervals of 95 %."""
    with styled():
        figure = Figure(figsize=(11, 0.9 + 0.3 * len(arms)), layout="constrained")
        for axes, (score, title) in zip(
            figure.subplots(1, len(scores), sharey=True), scores.items(), strict=True
        ):
            reference = on_test(found, other, score)
            apart = [difference(on_test(found, arm, score), reference) for arm in arms]
            axes.errorbar(
                [100 * one.mean for one in apart],
                range(len(arms)),
                xerr=[100 * one.half for one in apart],
                color=BLUE, marker="o", ms=5, capsize=3, ls="none",
            )  # fmt: skip
            axes.axvline(0, color=MUTED, lw=1)
            axes.set(title=title.removesuffix(", %"), yticks=range(len(arms)), yticklabels=arms)
            axes.set_xlabel(f"points more than {other}")
        axes.invert_yaxis()
        save_figure(figure, out)
