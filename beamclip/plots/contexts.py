"""Draw what contexts do to text anchors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from beamclip.plots.style import BLUE, FAINT, MUTED, ORANGE, drawable_text, save_figure, styled


def plot_contexts(
    pairs: Sequence[tuple[str, float, float]], bare: Tensor, with_contexts: Tensor, title: str, out: Path
) -> Path:
    """Draw how the closest pairs of classes move, and how near each class's nearest neighbour is.

    Args:
        pairs: label of each pair, cosine of its anchors with bare names, and with contexts; the first on top.
        bare: [K] cosine of each class and the nearest other one, with bare names.
        with_contexts: [K] the same with contexts.
        title: title of the whole figure.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    with styled():
        figure = Figure(figsize=(11, max(3.2, 0.24 * len(pairs) + 1.4)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_pairs(left, pairs)
        _draw_neighbours(right, bare, with_contexts)
        figure.suptitle(drawable_text(title, 110), fontweight="bold")
        return save_figure(figure, out)


def _draw_pairs(axes: Axes, pairs: Sequence[tuple[str, float, float]]) -> None:
    rows = np.arange(len(pairs))
    before, after = (np.array([pair[place] for pair in pairs]) for place in (1, 2))
    axes.hlines(rows, before, after, color=MUTED, linewidth=1)
    axes.scatter(before, rows, color=ORANGE, s=22, zorder=3)
    axes.scatter(after, rows, color=BLUE, s=22, zorder=3)
    axes.set_yticks(rows, [drawable_text(label, 64) for label, _, _ in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel("cosine of the two anchors")
    axes.set_title("The closest pairs of bare names", loc="left")


def _draw_neighbours(axes: Axes, bare: Tensor, with_contexts: Tensor) -> None:
    both = np.concatenate([bare.numpy(), with_contexts.numpy()])
    bins = np.linspace(both.min(), max(both.max(), both.min() + 0.01), 41).tolist()
    for values, colour, label in ((bare, ORANGE, "bare names"), (with_contexts, BLUE, "with contexts")):
        axes.hist(values.numpy(), bins, histtype="step", color=colour, linewidth=1.6, label=label)
        axes.axvline(values.mean().item(), color=colour, linewidth=1, linestyle=":")
    axes.set_xlabel("cosine of a class and the one nearest to it")
    axes.set_ylabel("classes")
    axes.set_title("Nearest neighbours (dotted: mean)", loc="left")
    axes.grid(color=FAINT)
    axes.legend(frameon=False)
