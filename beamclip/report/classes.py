"""Which classes are missed, what for, and how far probabilities can be trusted."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from beamclip.evaluation.results import Ints, Scores
from beamclip.evaluation.scores import worst_classes
from beamclip.evaluation.statistic import CalibrationError, ReliabilityBins, reliability
from beamclip.plots.style import BLUE, MUTED, styled
from beamclip.plots.svg import svg_element
from beamclip.report.run_files import RunFiles

WORST = 15
"""Classes in the table."""
NAMED = 8
"""Classes in the list of those that are named too often."""
BINS = 10
"""Bins of the reliability diagram, of equal numbers of images."""
TEACHER = "teacher"
"""Name of the scores of a student's teacher, which has a report of its own."""
FEWEST = 100
"""Images that a reliability diagram needs."""


@dataclass(frozen=True)
class ClassRow:
    """A class, and what its images are taken for."""

    name: str
    right: int
    images: int
    confusions: tuple[tuple[str, int], ...]
    """The classes that its images were taken for most often, and how many were."""

    @property
    def accuracy(self) -> float:
        """Percent of its images that are right."""
        return 100 * self.right / self.images


@dataclass(frozen=True)
class ClassTable:
    """The worst classes of one data set, and those that are named too often."""

    data: str
    classes: int
    """Classes that have images."""
    perfect: int
    """Classes all of whose images are right."""
    never: int
    """Classes none of whose images is right."""
    most_images: int
    """Images of the largest class."""
    rows: tuple[ClassRow, ...]
    named: tuple[tuple[str, int, int], ...]
    """The classes named for most wrong images: name, wrong images, own images."""
    reliability: Markup | None


def class_tables(run: RunFiles) -> tuple[ClassTable, ...]:
    """Return a table for each data set whose images were scored one by one."""
    return tuple(
        _table(name, scored, place)
        for place, (name, scored) in enumerate(run.scored.items())
        if name != TEACHER and scored.labels is not None and scored.predicted is not None
    )


def worst_rows(scored: Scores, most: int = WORST) -> list[ClassRow]:
    """Return the classes with the lowest accuracy, but for those without a mistake; see `worst_classes`."""
    names = dict(zip(scored.facts.class_ids, scored.facts.class_names, strict=True))
    return [
        ClassRow(
            row["name"],
            round(row["accuracy"] * row["images"]),
            row["images"],
            tuple((names[other], number) for other, number in row["taken_for"]),
        )
        for row in worst_classes(scored, most)
        if row["accuracy"] < 1
    ]


def named_too_often(scored: Scores, most: int = NAMED) -> list[tuple[str, int, int]]:
    """Return the classes that most wrong images are taken for: name, wrong images, own images."""
    labels, likeliest = _pairs(scored)
    wrong = Counter(likeliest[likeliest != labels].tolist())
    names = scored.facts.class_names
    return [(names[k], number, int((labels == k).sum())) for k, number in wrong.most_common(most)]


def reliability_bins(scored: Scores) -> ReliabilityBins:
    """Return mean probability and accuracy of BINS bins with equally many images."""
    assert scored.probability is not None, "it is written with the predictions"
    labels, likeliest = _pairs(scored)
    hits, confidence = (likeliest == labels).astype(float), scored.probability.astype(float)
    return reliability(CalibrationError(hits, confidence, bins=BINS))


def _table(data: str, scored: Scores, place: int) -> ClassTable:
    labels, likeliest = _pairs(scored)
    images = np.bincount(labels)
    right = np.bincount(labels, likeliest == labels)
    seen = images > 0
    return ClassTable(
        data,
        int(seen.sum()),
        int((seen & (right == images)).sum()),
        int((seen & (right == 0)).sum()),
        int(images.max()),
        tuple(worst_rows(scored)),
        tuple(named_too_often(scored)),
        _draw_reliability(scored, f"reliability{place}")
        if len(labels) >= FEWEST and scored.probability is not None
        else None,
    )


def _pairs(scored: Scores) -> tuple[Ints, Ints]:
    """[N] true classes, [N] likeliest ones."""
    assert scored.labels is not None, "class_tables() checks it"
    assert scored.predicted is not None, "class_tables() checks it"
    return scored.labels, scored.predicted[:, 0]


def _draw_reliability(scored: Scores, name: str) -> Markup:
    bins = reliability_bins(scored)
    with styled():
        figure = Figure(figsize=(3.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
        axes.plot(bins.confidence, bins.accuracy, color=BLUE, linewidth=1.8, marker="o", markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("probability of the likeliest class")
        axes.set_ylabel("share that is right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title("Reliability (dotted: ideal)", loc="left", fontweight="bold")
        label = "Share of right predictions over their probability, in ten bins of equally many images"
        return Markup(svg_element(figure, name, label))
