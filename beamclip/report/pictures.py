"""Pictures of a report: the sheet of images, similarities, contexts, and those of a sweep."""

import base64
import csv
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from beamclip.plots.comparison import agreement_text, similarity_figures
from beamclip.plots.contexts import ContextEffect, context_figures
from beamclip.plots.similarity import Similarity
from beamclip.plots.svg import svg_element

PAIRS = 10
"""Closest pairs of classes in the picture of contexts."""
TRIALS = 20
"""Trials in the table of a sweep."""
TRIALS_FILE = "trials.csv"


@dataclass(frozen=True)
class Drawn:
    """Pictures that stand side by side where there is room, and what they say."""

    text: str
    figures: tuple[Markup, ...]


@dataclass(frozen=True)
class SweepPart:
    """The best trials of a sweep as a table of texts, the header first, and its pictures."""

    rows: tuple[tuple[str, ...], ...]
    trials: int
    pictures: tuple[tuple[str, str], ...]
    """Name, and PNG file in base64."""


def draw_similarity(similarity: Similarity) -> Drawn:
    """Draw the matrices of teacher and student, and their difference."""
    figures = [
        Markup(svg_element(figure, f"similarity{i}", f"Similarity of images and text anchors: {title}"))
        for i, (title, figure) in enumerate(similarity_figures(similarity))
    ]
    return Drawn(agreement_text(similarity), tuple(figures))


def draw_contexts(effect: ContextEffect) -> Drawn:
    """Draw how contexts move anchors apart."""
    figures = [
        Markup(svg_element(figure, f"contexts{i}", f"{title}, with and without contexts"))
        for i, (title, figure) in enumerate(context_figures(effect, PAIRS))
    ]
    before, after = (sum(values) / len(values) for values in (effect.bare, effect.with_contexts))
    text = (
        f"Cosine of a class and the one nearest to it, mean over {len(effect.bare):,} classes: {before:.3f} "
        f"with bare names, {after:.3f} with contexts ({effect.contexts})."
    )
    return Drawn(text, tuple(figures))


def sweep_part(folder: Path, pictures: tuple[Path, ...]) -> SweepPart | None:
    """Return what the folder of a sweep shows; None if it holds neither table nor picture."""
    path = folder / TRIALS_FILE
    rows: list[tuple[str, ...]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [tuple(map(_short, row)) for row in csv.reader(file)]
    if len(rows) < 2 and not pictures:
        return None
    images = (
        (each.stem.replace("_", " "), base64.b64encode(each.read_bytes()).decode()) for each in pictures
    )
    return SweepPart(tuple(rows[: TRIALS + 1]), max(0, len(rows) - 1), tuple(images))


def _short(cell: str) -> str:
    """Return a number with four digits at most after its first; any other text as it is."""
    try:
        return cell if cell.isdigit() else f"{float(cell):.4g}"
    except ValueError:
        return cell
