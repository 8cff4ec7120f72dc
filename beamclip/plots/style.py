"""How pictures look: colours, fonts, the style of axes.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind readers can tell
apart.
"""

import unicodedata
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import font_manager, style
from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#8a8a8a")
"""Colours of runs that are drawn into one picture, in order; the eighth has the first one again."""
INK, MUTED, FAINT = "#1a1a1a", "#6b6b6b", "#dddddd"
DPI = 120
FAMILIES = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai")
"""Font families; each letter is drawn in the first that has it. The first family comes with matplotlib."""


@cache
def fonts() -> tuple[list[str], frozenset[int]]:
    """Return the families that are installed, and the code points that at least one of them has."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = [family for family in FAMILIES if family in installed]
    maps = [font_manager.get_font(font_manager.findfont(family)).get_charmap() for family in families]
    return families, frozenset(code for charmap in maps for code in charmap)


def styled() -> AbstractContextManager[None]:
    """Return a context manager in which new figures have the style of this project."""
    families, _ = fonts()
    settings = {
        "font.family": families,
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.labelcolor": MUTED,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "figure.titlesize": 11,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }
    return style.context(["default", settings])


def drawable_text(text: str, length: int) -> str:
    """Return a text as the fonts can draw it: one line, cut to `length` letters, boxes for missing ones."""
    _, drawable = fonts()
    joined = unicodedata.normalize("NFC", " ".join(text.split()))
    # Joiners and variation selectors are invisible by themselves; a box in their place would be noise.
    letters = [c for c in joined if ord(c) in drawable or unicodedata.category(c) not in ("Cf", "Mn")]
    if len(letters) > length:
        letters = [*"".join(letters[: length - 1]).rstrip(), "…"]
    # A dollar sign would start a formula.
    return "".join(c if ord(c) in drawable else "□" for c in letters).replace("$", r"\$")


def save_figure(figure: Figure, out: Path) -> Path:
    """Write a figure as a PNG file, whose folder is made, and return its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=DPI, facecolor="white")
    return out
