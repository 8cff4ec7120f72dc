"""Draw teacher and student side by side: predictions for images, similarities of images and anchors."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from beamclip.plots.style import GREEN, INK, MUTED, Floats, drawable_text, save_figure, styled

TOP = 3
"""Predictions shown for each image and model."""
LABELLED = 48
"""Most names along one side of a matrix; with more, only every second, third, ... is written."""


def plot_predictions(
    images: Tensor,
    truths: Sequence[str],
    teacher_scores: Tensor,
    student_scores: Tensor,
    names: Sequence[str],
    out: Path,
) -> Path:
    """Draw a sheet of images, each with the three likeliest classes of the teacher and of the student.

    Args:
        images: [n, 3, H, W] uint8, RGB.
        truths: n class names; a prediction is right if its name is the same.
        teacher_scores: [n, K] logits: similarities divided by the teacher's temperature.
        student_scores: [n, K] logits of the student.
        names: K class names.
        out: PNG file; its folder is made.

    Returns:
        `out`.

    Raises:
        ValueError: there is no image, or the counts do not agree.
    """
    wanted = (len(images), len(names))
    if not len(truths) == len(images) > 0 or teacher_scores.shape != wanted or student_scores.shape != wanted:
        raise ValueError(
            f"plot_predictions: {len(images)} images, {len(truths)} truths and {len(names)} names need "
            f"scores of {list(wanted)}, 1 image or more; teacher's are {list(teacher_scores.shape)}, "
            f"student's {list(student_scores.shape)}"
        )
    pixels = images.detach().cpu().permute(0, 2, 3, 1).numpy()
    with styled():
        columns = min(2, len(images))
        rows = math.ceil(len(images) / columns)
        figure = Figure(figsize=(7.2 * columns, 1.75 * rows + 0.45))
        heights = (1.75 * rows, 0.45)
        (body,), (foot,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
        cards = body.subfigures(rows, columns, squeeze=False)
        for i, card in zip(range(len(images)), cards.flat, strict=False):
            models = [("teacher", teacher_scores[i]), ("student", student_scores[i])]
            _draw_card(card, pixels[i], truths[i], models, names)
        foot.text(
            0.5,
            0.5,
            f"✓ and green: the true class.   Bars: softmax probability over {len(names):,} classes.",
            color=MUTED,
            ha="center",
            va="center",
        )
        return save_figure(figure, out)


def plot_similarity(
    teacher: Tensor, student: Tensor, image_names: Sequence[str], anchor_names: Sequence[str], out: Path
) -> Path:
    """Draw the similarities of images and anchors: teacher and student on one scale, and their difference.

    Args:
        teacher: [n, K] cosine similarities in the teacher's space.
        student: [n, K] cosine similarities of the student's embeddings and the same anchors.
        image_names: n names, of the images or of their classes.
        anchor_names: K names; a cell whose two names are the same is outlined.
        out: PNG file; its folder is made.

    Returns:
        `out`.

    Raises:
        ValueError: a matrix is empty, or the counts do not agree.
    """
    wanted = (len(image_names), len(anchor_names))
    if teacher.shape != wanted or student.shape != wanted or 0 in wanted:
        raise ValueError(
            f"plot_similarity: {wanted[0]} images and {wanted[1]} anchors need matrices of {list(wanted)}; "
            f"teacher's is {list(teacher.shape)}, student's {list(student.shape)}"
        )
    ours, theirs = _doubles(student), _doubles(teacher)
    low, high = min(ours.min(), theirs.min()), max(ours.max(), theirs.max())
    # Equal values need a scale with a width too; matplotlib would widen an empty one differently per matrix.
    scale = {"cmap": "viridis", "vmin": low, "vmax": high if high > low else low + 0.01}
    widest = np.abs(ours - theirs).max() or 0.01
    with styled():
        side = [min(max(0.19 * n, 2.4), 6.0) for n in wanted]
        figure = Figure(figsize=(3 * side[1] + 3.4, side[0] + 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
        _draw_matrix(left, theirs, "teacher", **scale)
        shared = _draw_matrix(middle, ours, "student", **scale)
        opposed = {"cmap": "PuOr", "vmin": -widest, "vmax": widest}
        change = _draw_matrix(right, ours - theirs, "student − teacher", **opposed)
        figure.colorbar(shared, ax=[left, middle], label="cosine similarity", pad=0.01, aspect=30)
        figure.colorbar(change, ax=right, label="difference", pad=0.02, aspect=30)
        _name_sides((left, middle, right), image_names, anchor_names)
        own = [(j, i) for i, a in enumerate(image_names) for j, b in enumerate(anchor_names) if a == b]
        for axes, colour in ((left, "white"), (middle, "white"), (right, INK)):
            _outline(axes, own, colour)
        outlined = "; outlined: image and anchor of the same name" if own else ""
        figure.suptitle(f"Images × text anchors: {_correlation(theirs, ours)}{outlined}")
        return save_figure(figure, out)


def _draw_card(
    card: SubFigure,
    pixels: npt.NDArray[np.uint8],
    truth: str,
    models: list[tuple[str, Tensor]],
    names: Sequence[str],
) -> None:
    """Draw one image under its true name, and beside it the predictions of each model."""
    picture = card.add_axes((0.02, 0.06, 0.22, 0.74))
    picture.imshow(pixels, interpolation="nearest" if min(pixels.shape[:2]) < 96 else "antialiased")
    picture.set_axis_off()
    card.text(0.02, 0.86, drawable_text(truth, 70), fontweight="bold", fontsize=10, va="bottom")
    for place, (model, scores) in enumerate(models):
        axes = card.add_axes((0.27 + 0.37 * place, 0.06, 0.34, 0.62))
        _draw_bars(axes, model, scores, truth, names)


def _draw_bars(axes: Axes, model: str, scores: Tensor, truth: str, names: Sequence[str]) -> None:
    order = scores.argsort(descending=True).tolist()
    probability = scores.double().softmax(dim=0)
    shown = order[:TOP]
    rank = next((i for i, k in enumerate(order, start=1) if names[k] == truth), None)
    axes.set(xlim=(0, 1), ylim=(TOP - 0.5, -0.5))
    axes.set_axis_off()
    axes.set_title(model, loc="left", fontsize=9, color=MUTED)
    if rank is not None and rank > TOP:
        axes.set_title(f"true class: rank {rank:,}", loc="right", fontsize=8, color=MUTED)
    for row, k in enumerate(shown):
        right = names[k] == truth
        value = float(probability[k])
        axes.barh(row, 1.0, height=0.84, color="#f3f3f3")
        axes.barh(row, value, height=0.84, color=GREEN if right else "#9a9a9a", alpha=0.45)
        mark, weight, colour = ("✓ ", "bold", "#00573f") if right else ("", "normal", INK)
        label = mark + drawable_text(names[k], 26)
        axes.text(0.02, row, label, va="center", fontsize=8.5, color=colour, fontweight=weight)
        percent = f"{value:.0%}" if value >= 0.005 else "< 1%"
        axes.text(0.985, row, percent, va="center", ha="right", fontsize=8.5, color=colour)


def _draw_matrix(axes: Axes, values: Floats, title: str, **colours: Any) -> Any:
    axes.set_title(title, fontweight="bold")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return axes.imshow(values, aspect="auto", interpolation="nearest", **colours)


def _name_sides(row: Sequence[Axes], image_names: Sequence[str], anchor_names: Sequence[str]) -> None:
    """Write names below each matrix and left of the first; they share their axes, so ticks are set once."""
    across, down = (math.ceil(len(names) / LABELLED) for names in (anchor_names, image_names))
    row[0].set_xticks(range(0, len(anchor_names), across))
    row[0].set_yticks(range(0, len(image_names), down))
    row[0].set_yticklabels([drawable_text(name, 24) for name in image_names[::down]])
    row[0].set_ylabel("image")
    for axes in row:
        axes.set_xticklabels([drawable_text(name, 24) for name in anchor_names[::across]], rotation=90)
        axes.tick_params(length=0, labelsize=7.5)
        axes.set_xlabel("text anchor")


def _outline(axes: Axes, cells: Iterable[tuple[int, int]], colour: str) -> None:
    for column, row in cells:
        box = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(box, 1, 1, fill=False, edgecolor=colour, linewidth=0.9))


def _correlation(first: Floats, second: Floats) -> str:
    if first.std() == 0 or second.std() == 0:
        return "correlation undefined, a matrix is constant"
    return (
        f"Pearson correlation of teacher and student {np.corrcoef(first.ravel(), second.ravel())[0, 1]:.3f}"
    )


def _doubles(values: Tensor) -> Floats:
    return values.detach().cpu().double().numpy()
