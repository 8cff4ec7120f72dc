"""Draw what training recorded, over its steps: one run, or several in the same panels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from beamclip.plots.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    Floats,
    drawable_text,
    save_figure,
    styled,
)

History = Sequence[dict[str, float]]
"""Records of a run, with `step` and any of the quantities, in any order."""
DRAWN = 400
"""Most points of a line; with more, only every second, third, ... is drawn."""
CONTRASTIVE = frozenset(("loss/clip", "loss/siglip", "loss/psd"))
"""Terms that compare the samples of a batch with each other."""
DASHES = ("-", "--", ":")
"""Styles of the lines of a panel where the colours tell runs apart."""


@dataclass(frozen=True)
class Line:
    """A quantity that a panel shows."""

    key: str
    """Name of the line in the records."""
    colour: str
    label: str = ""
    """Name of the line in the legend, which a panel of several lines has."""
    noisy: bool = True
    """Whether a running mean is drawn over the line."""


@dataclass(frozen=True)
class Panel:
    """A small picture of one quantity, or of a few that share a scale."""

    title: str
    lines: tuple[Line, ...]
    from_zero: bool = False
    percent: bool = False


def plot_curves(history: History, out: Path) -> Path:
    """Draw what training recorded over the steps, in one small panel per quantity.

    Panels: the loss, with that on held-out data (`val_loss`) if it was recorded, but a contrastive one apart,
    since it depends on the size of its batches; each of its terms
    (`loss/...`, before weighting), unless the only term is the loss itself; accuracy on held-out data
    (`val_..._top1`); learning rate, gradient norm, logit scale, images per second, share of the time spent
    waiting for data.
    A quantity that no record holds gets no panel; values that are not finite leave a gap. With forty values
    or more, a running mean is drawn over what is noisy.

    Args:
        history: may be empty.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    panels = panels_of([history])
    with styled():
        columns = min(3, max(1, len(panels)))
        rows = max(1, math.ceil(len(panels) / columns))
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.3), layout=layout)
        grid = figure.subplots(rows, columns, squeeze=False)
        if not panels:
            _blank(grid[0, 0], "nothing was recorded")
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel, [history])
        for axes in grid.flat[max(1, len(panels)) :]:
            axes.set_axis_off()
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("step")
        return save_figure(figure, out)


def curve_figures(histories: Sequence[History]) -> Iterator[tuple[str, Figure]]:
    """Yield title and figure of each panel; several runs have the colours of SERIES, in order."""
    for panel in panels_of(histories):
        with styled():
            figure = Figure(figsize=(4.2, 2.6), layout="constrained")
            axes = figure.subplots()
            _draw_panel(axes, panel, histories)
            axes.set_xlabel("step")
            yield panel.title, figure


def panels_of(histories: Sequence[History]) -> list[Panel]:
    """Return the panels that would not be empty; their lines are those that some record holds."""
    held = {key for history in histories for record in history for key in record}
    terms = sorted(key for key in held if key.startswith("loss/"))
    terms = [term for term in terms if not all(_repeats_loss(history, term) for history in histories)]
    held_out = Line("val_loss", ORANGE, "held-out", noisy=False)
    # A contrastive loss grows with its batch, which is smaller in validation.
    apart = not CONTRASTIVE.isdisjoint(held)
    panels = [
        Panel("Loss", (Line("loss", BLUE, "training"), *(() if apart else (held_out,)))),
        *([Panel("Held-out loss", (held_out,))] if apart else []),
        Panel(
            "Accuracy, held-out images",
            (
                Line("val_zeroshot_top1", BLUE, "zero-shot top-1", noisy=False),
                Line("val_knn_top1", GREEN, "kNN top-1", noisy=False),
            ),
            from_zero=True,
            percent=True,
        ),
        *(Panel(f"Loss term: {term.removeprefix('loss/')}", (Line(term, BLUE),)) for term in terms),
        Panel("Learning rate", (Line("lr", INK, noisy=False),), from_zero=True),
        Panel("Gradient norm", (Line("grad_norm", INK),), from_zero=True),
        Panel("Logit scale", (Line("logit_scale", INK),)),
        Panel("Images per second", (Line("images_per_second", ORANGE),), from_zero=True),
        Panel("Time waiting for data", (Line("data_wait_share", ORANGE),), from_zero=True, percent=True),
    ]
    filled = []
    for panel in panels:
        lines = tuple(line for line in panel.lines if any(len(_series(h, line.key)[0]) for h in histories))
        if lines:
            # Without the other line there is no legend to say which accuracy it is.
            alone = panel.percent and len(lines) < len(panel.lines)
            title = f"Held-out {lines[0].label}" if alone else panel.title
            filled.append(replace(panel, title=title, lines=lines))
    return filled


def _repeats_loss(history: History, term: str) -> bool:
    """Whether a term has the values of the loss wherever it was recorded, as one of weight 1 alone has."""
    both = [(record["loss"], record[term]) for record in history if "loss" in record and term in record]
    return all(math.isclose(loss, part, rel_tol=1e-6) or loss != loss for loss, part in both)


def _series(history: History, key: str) -> tuple[Floats, Floats]:
    """Return steps and values of a quantity, by step; of a step that was recorded twice, the later value."""
    points = {record["step"]: record[key] for record in history if key in record and "step" in record}
    steps = sorted(points)
    return np.array(steps, dtype=float), np.array([points[step] for step in steps], dtype=float)


def _draw_panel(axes: Axes, panel: Panel, histories: Sequence[History]) -> None:
    several = len(histories) > 1
    highest, last = 0.0, math.nan
    for place, line in enumerate(panel.lines):
        for run, history in enumerate(histories):
            steps, values = _series(history, line.key)
            values = np.where(np.isfinite(values), values, np.nan)
            colour = SERIES[run % len(SERIES)] if several else line.colour
            _draw_line(axes, line, steps, values, (colour, DASHES[place % 3] if several else "-"))
            finite = values[np.isfinite(values)]
            highest = max(highest, finite.max(initial=0.0))
            last = finite[-1] if len(finite) else math.nan
    if panel.from_zero and highest > 0:
        axes.set_ylim(0, 1.08 * highest)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0) if panel.percent else "{x:g}")
    axes.set_title(drawable_text(panel.title, 34), loc="left", fontweight="bold")
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    elif not several and math.isfinite(last):
        notation = ".1%" if panel.percent else ".3g" if abs(last) < 1000 else ",.0f"
        axes.set_title(f"last {last:{notation}}", loc="right", color=MUTED, fontsize=8)


def _draw_line(axes: Axes, line: Line, steps: Floats, values: Floats, look: tuple[str, str]) -> None:
    """Draw one quantity of one run; `look` is its colour and its dashes."""
    colour, dashes = look
    # A line with a label would be listed once for each run.
    label = line.label if line.label not in axes.get_legend_handles_labels()[1] else "_again"
    reach = len(values) // 40 if line.noisy else 0
    thin = slice(None, None, max(1, len(values) // DRAWN))
    style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "linestyle": dashes, "label": label or "_"}
    if reach:
        axes.plot(steps[thin], values[thin], color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps[reach:-reach][thin], _running_mean(values, reach)[thin], **style)
    else:
        axes.plot(steps[thin], values[thin], marker="o" if len(values) < 16 else "", markersize=4, **style)


def _running_mean(values: Floats, reach: int) -> Floats:
    """[n - 2 reach] means over `reach` neighbours on either side, gaps left out of the mean."""
    windows = np.lib.stride_tricks.sliding_window_view(values, 2 * reach + 1)
    return np.ma.masked_invalid(windows).mean(axis=1).filled(np.nan)


def _blank(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes)
    axes.set_axis_off()
