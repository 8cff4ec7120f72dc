"""Pictures of a sweep, as PNG files: heat maps of pairs of options, parallel coordinates, learning curves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from beamclip.plots.style import FAINT, INK, MUTED, drawable_text, save_figure, styled
from beamclip.sweep.space import Range, Space, Values, shown
from beamclip.sweep.trial import Trial, ranked

MOST_MAPS = 6
SCORE = "zero-shot top-1"
COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.92, 256)))
"""Viridis without its yellow end, which is hard to see as a line."""

Colour = tuple[float, float, float, float]
Place = Callable[[Any], float]
"""Maps a value of an option to its height on the option's axis, 0 to 1."""


def plot_heat_maps(trials: Sequence[Trial], space: Space, out: Path) -> Path | None:
    """Draw the best score for each pair of values of two options, one map for each pair of options.

    All maps share one colour scale. The score of a trial that did not finish is in italics.

    Args:
        space: the first MOST_MAPS pairs of its options are drawn; options with a range or a single value
            are left out.

    Returns:
        `out`; None if fewer than two options have values to pair, or no trial was scored.
    """
    names = [name for name, choice in space.items() if isinstance(choice, Values) and len(choice.values) > 1]
    pairs = list(combinations(names, 2))[:MOST_MAPS]
    scored = [trial for trial in trials if trial.score is not None]
    if not pairs or not scored:
        return None
    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    with styled():
        figure = Figure(figsize=(1 + 3.9 * columns, 0.9 + 3.3 * rows), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        scale = _Scale.of(scored)
        for axes, (across, up) in zip(grid, pairs, strict=False):
            _draw_map(axes, scored, (up, across), (_values(space[up]), _values(space[across])), scale)
        for axes in grid[len(pairs) :]:
            axes.set_visible(False)
        bar = figure.colorbar(
            ScalarMappable(scale.norm, COLOURS),
            ax=grid.tolist(),
            format=PercentFormatter(1.0),
            shrink=0.8,
        )
        bar.set_label(f"{SCORE}, best over all other options")
        figure.suptitle(f"{len(scored)} trials: pairs of options (white: not tried)", fontweight="bold")
        return save_figure(figure, out)


def plot_parallel(trials: Sequence[Trial], space: Space, out: Path) -> Path | None:
    """Draw each trial as a line through its values and its score; dotted if it did not finish.

    Returns:
        `out`; None if no trial was scored.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        return None
    names = list(space)
    with styled():
        figure = Figure(figsize=(max(6.0, 1.9 * (len(names) + 1)), 4.4), layout="constrained")
        axes = figure.subplots()
        scale = _Scale.of(scored)
        places = {name: _place(space[name]) for name in names}
        # The best trials last, so that they are on top.
        for trial in reversed(ranked(scored)):
            heights = [places[name](trial.settings[name]) for name in names]
            heights.append(scale.height(trial.score))
            axes.plot(
                heights,
                color=scale.colour(trial.score),
                linewidth=1.4,
                linestyle="-" if trial.status == "finished" else ":",
            )
        for index, name in enumerate(names):
            _draw_axis(axes, index, _ticks(space[name], places[name]))
        ends = [(height, f"{100 * end:.1f} %") for height, end in ((0.0, scale.low), (1.0, scale.high))]
        _draw_axis(axes, len(names), ends)
        axes.set_xticks(range(len(names) + 1), [*names, SCORE])
        axes.set_xlim(-0.2, len(names) + 0.5)
        axes.set_yticks([])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(False)
        figure.suptitle(f"{len(scored)} trials: options and score", fontweight="bold")
        return save_figure(figure, out)


def plot_learning(trials: Sequence[Trial], label: Callable[[Trial], str], out: Path) -> Path | None:
    """Draw the scores of each trial over its steps, coloured by rank; dotted if it did not finish.

    Args:
        label: returns the text for a trial in the legend, which lists the best five.

    Returns:
        `out`; None if no trial was scored.
    """
    scored = ranked(trial for trial in trials if trial.scores)
    if not scored:
        return None
    with styled():
        figure = Figure(figsize=(8, 4.6), layout="constrained")
        axes = figure.subplots()
        last = max(1, len(scored) - 1)
        named = scored[:5]
        for rank, trial in reversed(list(enumerate(scored))):
            axes.plot(
                [score.step for score in trial.scores],
                [score.zeroshot_top1 for score in trial.scores],
                color=COLOURS(1 - rank / last),
                marker="o",
                markersize=3,
                linewidth=1.8 if trial in named else 1.0,
                linestyle="-" if trial.status == "finished" else ":",
                label=f"{rank + 1}. {drawable_text(label(trial), 70)}" if trial in named else None,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_ylabel(SCORE)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axes.set_ylim(bottom=0)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], frameon=False, fontsize=8, loc="outside lower center")
        figure.suptitle(f"{len(scored)} trials on held-out images (dotted: not finished)", fontweight="bold")
        return save_figure(figure, out)


@dataclass(frozen=True)
class _Scale:
    """Maps scores to colours and to heights."""

    low: float
    high: float

    @classmethod
    def of(cls, scored: Sequence[Trial]) -> "_Scale":
        scores = [trial.score or 0.0 for trial in scored]
        # A colour bar needs two ends.
        return cls(min(scores), max(*scores, min(scores) + 0.001))

    @property
    def norm(self) -> Normalize:
        return Normalize(self.low, self.high)

    def height(self, score: float | None) -> float:
        return ((score or 0.0) - self.low) / (self.high - self.low)

    def colour(self, score: float | None) -> Colour:
        return COLOURS(self.height(score))


def _values(choice: Values | Range) -> list[Any]:
    """Return the values in the order of an axis: numbers ascending, others as they were given."""
    assert isinstance(choice, Values)
    values = list(choice.values)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else values


def _draw_map(
    axes: Axes,
    scored: Sequence[Trial],
    names: tuple[str, str],
    values: tuple[list[Any], list[Any]],
    scale: _Scale,
) -> None:
    """Draw one map; `names` and `values` are those of the rows, then those of the columns."""
    cells: npt.NDArray[np.float64] = np.full((len(values[0]), len(values[1])), np.nan)
    axes.set_xticks(range(len(values[1])), [drawable_text(shown(value), 16) for value in values[1]])
    axes.set_yticks(range(len(values[0])), [drawable_text(shown(value), 16) for value in values[0]])
    for row, upper in enumerate(values[0]):
        for column, right in enumerate(values[1]):
            own = [t for t in scored if t.settings[names[0]] == upper and t.settings[names[1]] == right]
            if own:
                best = ranked(own)[0]
                cells[row, column] = best.score or 0.0
                _write_cell(axes, (row, column), best, scale)
    axes.imshow(cells, cmap=COLOURS, norm=scale.norm, aspect="auto", origin="lower")
    axes.set_xlabel(names[1])
    axes.set_ylabel(names[0])
    axes.grid(False)
    axes.tick_params(length=0)


def _write_cell(axes: Axes, place: tuple[int, int], trial: Trial, scale: _Scale) -> None:
    red, green, blue, _ = scale.colour(trial.score)
    dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
    axes.text(
        place[1],
        place[0],
        f"{100 * (trial.score or 0.0):.1f}",
        color="white" if dark else INK,
        ha="center",
        va="center",
        fontsize=9,
        style="normal" if trial.status == "finished" else "italic",
    )


def _place(choice: Values | Range) -> Place:
    if isinstance(choice, Range):
        low, high = math.log(choice.low), math.log(choice.high)
        return lambda value: (math.log(value) - low) / (high - low)
    values = _values(choice)
    return lambda value: values.index(value) / (len(values) - 1) if len(values) > 1 else 0.5


def _ticks(choice: Values | Range, place: Place) -> list[tuple[float, str]]:
    values = [choice.low, choice.high] if isinstance(choice, Range) else _values(choice)
    return [(place(value), drawable_text(shown(value), 18)) for value in values]


def _draw_axis(axes: Axes, index: int, ticks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(index, color=MUTED, linewidth=1)
    for height, text in ticks:
        axes.text(
            index + 0.03,
            height,
            text,
            fontsize=8,
            color=INK,
            va="center",
            bbox={"facecolor": "white", "edgecolor": FAINT, "alpha": 0.85, "pad": 1.2},
        )
