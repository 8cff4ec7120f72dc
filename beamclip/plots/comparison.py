"""Draw models side by side: predictions for images, similarities of images and anchors."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from beamclip.plots.sheet import TOP, Answer, Card, Sheet
from beamclip.plots.similarity import Similarity
from beamclip.plots.style import GREEN, INK, MUTED, Floats, drawable_text, save_figure, styled


def plot_predictions(sheet: Sheet, out: Path) -> Path:
    """Draw a sheet of images, each with the three likeliest classes of each model.

    Args:
        sheet: of one image or more.
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    with styled():
        columns = min(2, len(sheet.cards))
        rows = math.ceil(len(sheet.cards) / columns)
        width = 2.0 + 2.6 * len(sheet.models)
        figure = Figure(figsize=(width * columns, 1.75 * rows + 0.45))
        heights = (1.75 * rows, 0.45)
        (body,), (foot,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
        places = body.subfigures(rows, columns, squeeze=False)
        for card, place in zip(sheet.cards, places.flat, strict=False):
            _draw_card(place, card, sheet.models, 1.75 / width)
        foot.text(
            0.5,
            0.5,
            f"✓ and green: the true class.   Bars: softmax probability over {sheet.classes:,} classes at the "
            f"temperature {sheet.temperature:g}.",
            color=MUTED,
            ha="center",
            va="center",
        )
        return save_figure(figure, out)


def plot_similarity(similarity: Similarity, out: Path) -> Path:
    """Draw the similarities of images and anchors: teacher and student on one scale, and their difference.

    The cell of an image and the anchor of its own class is outlined.

    Args:
        out: PNG file; its folder is made.

    Returns:
        `out`.
    """
    with styled():
        side = min(max(0.22 * len(similarity.names), 2.4), 6.0)
        figure = Figure(figsize=(3 * side + 3.4, side + 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
        shared, change = _draw_matrices(similarity, (left, middle, right))
        figure.colorbar(shared, ax=[left, middle], label="cosine similarity", pad=0.01, aspect=30)
        figure.colorbar(change, ax=right, label="student − teacher", pad=0.02, aspect=30)
        _name_sides((left, middle, right), similarity.names)
        figure.suptitle(f"Images × text anchors: {agreement_text(similarity)}; outlined: the true class")
        return save_figure(figure, out)


def similarity_figures(similarity: Similarity) -> list[tuple[str, Figure]]:
    """Return the three matrices of `plot_similarity` as figures of their own, each with its title."""
    drawn = []
    for place, title in enumerate(("teacher", "student", "student − teacher")):
        with styled():
            figure = Figure(figsize=(4.6, 4.4), layout="constrained")
            axes = figure.subplots()
            image = _draw_matrix(axes, similarity, place)
            axes.set_title(title, fontweight="bold")
            figure.colorbar(image, ax=axes, pad=0.02, aspect=30, shrink=0.7)
            _name_sides((axes,), similarity.names)
            drawn.append((title, figure))
    return drawn


def agreement_text(similarity: Similarity) -> str:
    """Say in numbers how far the student's similarities are from the teacher's."""
    mean = f"they differ by {similarity.difference:.3f} on average"
    if similarity.correlation is None:
        return f"{mean} (correlation undefined, a matrix is constant)"
    return f"Pearson correlation of teacher and student {similarity.correlation:.3f}, {mean}"


def _draw_card(place: SubFigure, card: Card, models: Sequence[str], height: float) -> None:
    """Draw one image under its true name, and beside it the predictions of each model.

    Args:
        height: of the card, as a share of its width.
    """
    pixels = card.pixels
    left = 0.74 * height + 0.05
    picture = place.add_axes((0.02, 0.06, 0.74 * height, 0.74))
    picture.imshow(pixels, interpolation="nearest" if min(pixels.shape[:2]) < 96 else "antialiased")
    picture.set_axis_off()
    place.text(0.02, 0.86, drawable_text(card.truth, 70), fontweight="bold", fontsize=10, va="bottom")
    share = (0.98 - left) / len(models)
    for i, (model, answer) in enumerate(zip(models, card.answers, strict=True)):
        axes = place.add_axes((left + share * i, 0.06, 0.92 * share, 0.62))
        _draw_bars(axes, model, answer)


def _draw_bars(axes: Axes, model: str, answer: Answer) -> None:
    axes.set(xlim=(0, 1), ylim=(TOP - 0.5, -0.5))
    axes.set_axis_off()
    axes.set_title(model, loc="left", fontsize=9, color=MUTED)
    if answer.rank is not None and answer.rank > TOP:
        axes.set_title(f"true class: rank {answer.rank:,}", loc="right", fontsize=8, color=MUTED)
    for row, guess in enumerate(answer.guesses):
        axes.barh(row, 1.0, height=0.84, color="#f3f3f3")
        axes.barh(row, guess.probability, height=0.84, color=GREEN if guess.right else "#9a9a9a", alpha=0.45)
        mark, weight, colour = ("✓ ", "bold", "#00573f") if guess.right else ("", "normal", INK)
        label = mark + drawable_text(guess.name, 26)
        axes.text(0.02, row, label, va="center", fontsize=8.5, color=colour, fontweight=weight)
        percent = f"{guess.probability:.0%}" if guess.probability >= 0.005 else "< 1%"
        axes.text(0.985, row, percent, va="center", ha="right", fontsize=8.5, color=colour)


def _draw_matrices(similarity: Similarity, row: Sequence[Axes]) -> tuple[Any, Any]:
    """Draw all three; return what a colour bar of the first two needs, and one of the last."""
    for axes, title in zip(row, ("teacher", "student", "student − teacher"), strict=True):
        axes.set_title(title, fontweight="bold")
    images = [_draw_matrix(axes, similarity, place) for place, axes in enumerate(row)]
    return images[1], images[2]


def _draw_matrix(axes: Axes, similarity: Similarity, place: int) -> Any:
    """Draw the teacher's matrix (place 0), the student's (1) or their difference (2)."""
    theirs, ours = similarity.teacher, similarity.student
    low, high = min(ours.min(), theirs.min()), max(ours.max(), theirs.max())
    # Equal values need a scale with a width too; matplotlib would widen an empty one differently per matrix.
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high if high > low else low + 0.01}
    values: Floats = (theirs, ours, ours - theirs)[place]
    if place == 2:
        widest = np.abs(values).max() or 0.01
        scale = {"cmap": "PuOr", "vmin": -widest, "vmax": widest}
    axes.grid(False)
    axes.spines[:].set_visible(False)
    outline = "black" if place == 2 else "white"
    for i in range(len(similarity.names)):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=outline, linewidth=0.9))
    return axes.imshow(values, aspect="auto", interpolation="nearest", **scale)


def _name_sides(row: Sequence[Axes], names: Sequence[str]) -> None:
    """Write names below each matrix and left of the first; they share their axes, so ticks are set once."""
    shown = [drawable_text(name, 24) for name in names]
    row[0].set_yticks(range(len(names)), shown)
    row[0].set_xticks(range(len(names)))
    row[0].set_ylabel("image of")
    for axes in row:
        axes.set_xticklabels(shown, rotation=90)
        axes.tick_params(length=0, labelsize=7.5)
        axes.set_xlabel("text anchor")
