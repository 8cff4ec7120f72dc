"""Draw what training recorded, over its steps."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from beamclip.plots.style import BLUE, INK, MUTED, ORANGE, Floats, drawable_text, save_figure, styled


class Panel(NamedTuple):
    """A panel that shows one quantity over the steps.

    `key` is its name in the records; a `noisy` quantity gets a running mean.
    """

    key: str
    title: str
    colour: str
    from_zero: bool = False
    percent: bool = False
    noisy: bool = True


def plot_curves(history: list[dict[str, float]], out: Path) -> Path:
    """Draw what training recorded over the steps, in one small panel per quantity.

    Panels: the loss, each of its terms (`loss/...`, before weighting), the scores of validations, learning
    rate, gradient norm, logit scale, images per second, share of the time spent waiting for data. A quantity
    that no record holds gets no panel; values that are not finite leave a gap. With forty values or more, a
    running mean is drawn over all but the learning rate and the validations.

    Args:
        history: records with `step` and any of the quantities; any order, may be empty.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    panels = [panel for panel in _panels(history) if len(_series(history, panel.key)[0])]
    with styled():
        columns = min(3, max(1, len(panels)))
        rows = max(1, math.ceil(len(panels) / columns))
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.3), layout=layout)
        grid = figure.subplots(rows, columns, squeeze=False)
        if not panels:
            _blank(grid[0, 0], "nothing was recorded")
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_curve(axes, panel, *_series(history, panel.key))
        for axes in grid.flat[max(1, len(panels)) :]:
            axes.set_axis_off()
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("step")
        return save_figure(figure, out)


def _panels(history: list[dict[str, float]]) -> list[Panel]:
    terms = sorted({key for record in history for key in record if key.startswith("loss/")})
    return [
        Panel("loss", "Loss", BLUE),
        *(Panel(term, f"Loss term: {term.removeprefix('loss/')}", BLUE) for term in terms),
        Panel("val_loss", "Validation: loss", BLUE, noisy=False),
        Panel("val_zeroshot_top1", "Validation: zero-shot top-1", BLUE, percent=True, noisy=False),
        Panel("val_knn_top1", "Validation: kNN top-1", BLUE, percent=True, noisy=False),
        Panel("lr", "Learning rate", INK, from_zero=True, noisy=False),
        Panel("grad_norm", "Gradient norm", INK, from_zero=True),
        Panel("logit_scale", "Logit scale", INK),
        Panel("images_per_second", "Images per second", ORANGE, from_zero=True),
        Panel("data_wait_share", "Time waiting for data", ORANGE, from_zero=True, percent=True),
    ]


def _series(history: list[dict[str, float]], key: str) -> tuple[Floats, Floats]:
    """Return steps and values of a quantity, by step; of a step that was recorded twice, the later value."""
    points = {record["step"]: record[key] for record in history if key in record and "step" in record}
    steps = sorted(points)
    return np.array(steps, dtype=float), np.array([points[step] for step in steps], dtype=float)


def _draw_curve(axes: Axes, panel: Panel, steps: Floats, values: Floats) -> None:
    values = np.where(np.isfinite(values), values, np.nan)
    reach = len(values) // 40 if panel.noisy else 0
    if reach:
        axes.plot(steps, values, color=panel.colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps[reach:-reach], _running_mean(values, reach), color=panel.colour, linewidth=1.8)
    else:
        axes.plot(steps, values, color=panel.colour, linewidth=1.8, marker="o" if len(values) < 8 else "")
    finite = values[np.isfinite(values)]
    if panel.from_zero and len(finite) and finite.max() > 0:
        axes.set_ylim(0, 1.08 * finite.max())
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0) if panel.percent else "{x:g}")
    axes.set_title(drawable_text(panel.title, 34), loc="left", fontweight="bold")
    if len(finite):
        notation = ".1%" if panel.percent else ".3g" if abs(finite[-1]) < 1000 else ",.0f"
        axes.set_title(f"last {finite[-1]:{notation}}", loc="right", color=MUTED, fontsize=8)


def _running_mean(values: Floats, reach: int) -> Floats:
    """[n - 2 reach] means over `reach` neighbours on either side, gaps left out of the mean."""
    windows = np.lib.stride_tricks.sliding_window_view(values, 2 * reach + 1)
    return np.ma.masked_invalid(windows).mean(axis=1).filled(np.nan)


def _blank(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes)
    axes.set_axis_off()
