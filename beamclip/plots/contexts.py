"""Draw what contexts do to text anchors."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from beamclip.plots.kept import read_kept, write_kept
from beamclip.plots.style import BLUE, FAINT, MUTED, ORANGE, drawable_text, save_figure, styled


@dataclass(frozen=True)
class MovedPair:
    """Two classes whose bare names have close anchors."""

    first: str
    second: str
    bare: float
    """Cosine of their anchors with bare names."""
    with_contexts: float


@dataclass(frozen=True)
class ContextEffect:
    """What contexts do to the anchors of K classes."""

    contexts: str
    """How many there are for a class, and from where: `2 from hierarchy`."""
    pairs: tuple[MovedPair, ...]
    """The closest pairs of bare names, closest first."""
    bare: tuple[float, ...]
    """Cosine of each class and the one nearest to it, with bare names."""
    with_contexts: tuple[float, ...]
    """Cosine of each class and the one nearest to it, with contexts."""


def plot_contexts(effect: ContextEffect, out: Path) -> Path:
    """Draw how the closest pairs of classes move, and how near each class's nearest neighbour is.

    Args:
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    with styled():
        figure = Figure(figsize=(11, max(3.2, 0.36 * len(effect.pairs) + 1.4)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        _draw_pairs(left, effect)
        _draw_neighbours(right, effect)
        title = f"Anchors of {len(effect.bare):,} classes: bare names, and with contexts ({effect.contexts})"
        figure.suptitle(drawable_text(title, 110), fontweight="bold")
        return save_figure(figure, out)


def context_figures(effect: ContextEffect, most_pairs: int) -> list[tuple[str, Figure]]:
    """Return both halves of `plot_contexts` as figures of their own, each with its title."""
    with styled():
        pairs = Figure(figsize=(4.6, 0.36 * min(most_pairs, len(effect.pairs)) + 1.2), layout="constrained")
        _draw_pairs(pairs.subplots(), effect, most_pairs, letters=26)
        neighbours = Figure(figsize=(4.6, 3.0), layout="constrained")
        _draw_neighbours(neighbours.subplots(), effect)
    return [("The closest pairs of bare names", pairs), ("Nearest neighbours", neighbours)]


def write_contexts(effect: ContextEffect, path: Path) -> None:
    """Write the effect of contexts as a JSON file, whose folder is made."""
    content = asdict(effect)
    for name in ("bare", "with_contexts"):
        content[name] = [round(value, 6) for value in content[name]]
    write_kept(content, path)


def read_contexts(path: Path) -> ContextEffect:
    """Read what `write_contexts` wrote.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    return read_kept(path, _effect, "a file of the effect of contexts")


def _effect(content: Any) -> ContextEffect:
    effect = ContextEffect(
        str(content["contexts"]),
        tuple(map(_moved_pair, content["pairs"])),
        tuple(map(float, content["bare"])),
        tuple(map(float, content["with_contexts"])),
    )
    if not (effect.pairs and effect.bare and effect.with_contexts):
        raise ValueError("it has no class")
    return effect


def _moved_pair(content: Any) -> MovedPair:
    both = (float(content[name]) for name in ("bare", "with_contexts"))
    return MovedPair(str(content["first"]), str(content["second"]), *both)


def _draw_pairs(axes: Axes, effect: ContextEffect, most: int | None = None, letters: int = 48) -> None:
    pairs = effect.pairs[:most]
    rows = np.arange(len(pairs))
    before, after = (np.array([getattr(p, name) for p in pairs]) for name in ("bare", "with_contexts"))
    axes.hlines(rows, before, after, color=MUTED, linewidth=1)
    # The smaller dot lies on the larger one where contexts change nothing.
    axes.scatter(before, rows, color=ORANGE, s=44, zorder=3, label="bare names")
    axes.scatter(after, rows, color=BLUE, s=16, zorder=3, label="with contexts")
    labels = [f"{drawable_text(p.first, letters)}\n{drawable_text(p.second, letters)}" for p in pairs]
    axes.set_yticks(rows, labels, fontsize=8)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    _plain_cosines(axes)
    axes.set_xlabel("cosine of the two anchors")
    axes.set_title("The closest pairs of bare names", loc="left", pad=22)
    axes.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0.1)


def _draw_neighbours(axes: Axes, effect: ContextEffect) -> None:
    bare, chosen = np.array(effect.bare), np.array(effect.with_contexts)
    both = np.concatenate([bare, chosen])
    bins = np.linspace(both.min(), max(both.max(), both.min() + 1e-6), 41).tolist()
    for values, colour, label in ((bare, ORANGE, "bare names"), (chosen, BLUE, "with contexts")):
        axes.hist(values, bins, histtype="step", color=colour, linewidth=1.6, label=label)
        axes.axvline(float(values.mean()), color=colour, linewidth=1, linestyle=":")
    _plain_cosines(axes)
    axes.set_xlabel("cosine of a class and the one nearest to it")
    axes.set_ylabel("classes")
    axes.set_title("Nearest neighbours (dotted: mean)", loc="left")
    axes.grid(color=FAINT)
    axes.legend(frameon=False)


def _plain_cosines(axes: Axes) -> None:
    """Write whole numbers along the axis: matplotlib would write 0.99 once, and small differences from it."""
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
