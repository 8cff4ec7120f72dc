"""Draw the scores of an evaluation: accuracy class by class, and how far probabilities can be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from beamclip.plots.style import BLUE, FAINT, INK, MUTED, ORANGE, Floats, drawable_text, save_figure, styled


def plot_classes(accuracy: Floats, worst: Sequence[Mapping[str, Any]], title: str, out: Path) -> Path:
    """Draw how accuracy is spread over the classes, and name the worst ones.

    Args:
        accuracy: [K], of each class that has images.
        worst: of the worst classes `name`, `images`, `accuracy` and `mistaken`, the name of the class that
            they are taken for most often, or "".
        title: of the whole figure.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    with styled():
        figure = Figure(figsize=(11, max(3.4, 0.24 * len(worst) + 1.2)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2, 3])
        _draw_spread(left, accuracy)
        _draw_worst(right, worst)
        figure.suptitle(drawable_text(title, 110))
        return save_figure(figure, out)


def _draw_spread(axes: Axes, accuracy: Floats) -> None:
    axes.hist(accuracy, np.linspace(0, 1, 21).tolist(), color=BLUE, zorder=2)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("share of a class's images that are found")
    axes.set_ylabel("classes")
    none = int((accuracy == 0).sum())
    axes.set_title(f"{len(accuracy):,} classes have images; none found of {none:,} classes", loc="left")


def _draw_worst(axes: Axes, worst: Sequence[Mapping[str, Any]]) -> None:
    rows = np.arange(len(worst))
    axes.barh(rows, [each["accuracy"] for each in worst], color=ORANGE, height=0.7)
    labels = [f"{drawable_text(each['name'], 36)}  ({each['images']:,})" for each in worst]
    axes.set_yticks(rows, labels)
    for row, each in enumerate(worst):
        mistaken = (
            f"   most often taken for: {drawable_text(each['mistaken'], 36)}" if each["mistaken"] else ""
        )
        text = f"{100 * each['accuracy']:.0f} %{mistaken}"
        axes.text(each["accuracy"] + 0.01, row, text, va="center", color=MUTED)
    axes.set_ylim(len(worst) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.grid(visible=False)
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
        figure = Figure(figsize=(5.4 * len(curves), 5.4), layout="constrained")
        every = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axes, (title, (confidence, accuracy)) in zip(every, curves.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="as sure as right")
            axes.vlines(confidence, confidence, accuracy, color=FAINT, linewidth=3)
            axes.plot(confidence, accuracy, color=BLUE, marker="o", markersize=4, label="bins of images")
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.set_xlabel("probability of the likeliest class")
            axes.set_title(title, loc="left")
        every[0].set_ylabel("share of images whose likeliest class is right")
        every[0].legend(frameon=False, loc="upper left", labelcolor=INK)
        return save_figure(figure, out)
