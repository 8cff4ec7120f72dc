"""Draw the scores of an evaluation: accuracy class by class, and how far probabilities can be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beamclip.plots.style import BLUE, FAINT, INK, MUTED, ORANGE, Floats, drawable_text, save_figure, styled

WORST = 20
"""Classes that are named."""


def plot_classes(hits: Floats, labels: npt.NDArray[np.int32], names: Sequence[str], out: Path) -> Path:
    """Draw how accuracy is spread over the classes, and name the worst ones.

    Args:
        hits: [N], 1 where the class of an image was found.
        labels: [N], class indices.
        names: K class names.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    images = np.bincount(labels, minlength=len(names))
    accuracy = np.bincount(labels, hits, minlength=len(names)) / np.maximum(images, 1)
    order = np.lexsort((-images, accuracy))
    order = order[images[order] > 0]
    worst = order[:WORST]
    with styled():
        figure = Figure(figsize=(11, max(3.4, 0.24 * len(worst) + 1.2)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 3])
        _draw_spread(left, accuracy[order])
        _draw_worst(right, accuracy[worst], images[worst], [names[index] for index in worst])
        share = f"{100 * hits.mean():.1f} %"
        figure.suptitle(f"Zero-shot top-1, class by class: {share} of {len(hits):,} images")
        return save_figure(figure, out)


def _draw_spread(axes: Axes, accuracy: Floats) -> None:
    axes.hist(accuracy, np.linspace(0, 1, 21).tolist(), color=BLUE)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("share of a class's images that are found")
    axes.set_ylabel("classes")
    none = int((accuracy == 0).sum())
    axes.set_title(f"{len(accuracy):,} classes with images; of {none:,} none is found", loc="left")


def _draw_worst(axes: Axes, accuracy: Floats, images: npt.NDArray[np.int64], names: list[str]) -> None:
    rows = np.arange(len(names))
    axes.barh(rows, accuracy, color=ORANGE, height=0.7)
    labels = [f"{drawable_text(name, 40)}  ({number:,})" for name, number in zip(names, images, strict=True)]
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share found")
    axes.set_title("The worst classes (images)", loc="left")


def plot_reliability(curves: Mapping[str, tuple[Floats, Floats]], out: Path) -> Path:
    """Draw the share of right predictions over their probability, in bins of images.

    Args:
        curves: title -> [bins] mean probability of the likeliest class, and [bins] share that is right.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    with styled():
        figure = Figure(figsize=(5.0 * len(curves), 5.2), layout="constrained")
        every = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axes, (title, (confidence, accuracy)) in zip(every, curves.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="as sure as right")
            axes.vlines(confidence, confidence, accuracy, color=FAINT, linewidth=3)
            axes.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, label="bins of images")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_aspect("equal")
            axes.set_xlabel("probability of the likeliest class")
            axes.set_title(title, loc="left")
        every[0].set_ylabel("share of images whose likeliest class is right")
        every[0].legend(frameon=False, loc="upper left", labelcolor=INK)
        return save_figure(figure, out)
