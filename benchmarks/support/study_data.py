"""Data sets of studies, divided by what each part is for: to train on, to choose by, to report."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.emoji_pairs import Pairs, load_emoji, load_glyphs, subset

IMAGES = {"emoji": 3834, "glyphs": 4000}
"""Data sets, with the number of their training images."""
GLYPH_TEST_IMAGES = 1600
HALVES = ("validation", "test")
"""Parts of the held-out images: settings are chosen by the first and reported on the second."""


@dataclass(frozen=True)
class StudyData:
    """Training pairs, held-out pairs by half, and class names by class index."""

    train: Pairs
    halves: dict[str, Pairs]
    names: list[str]


def load_data(name: str, emoji: Path, out: Path) -> StudyData:
    """Load a data set by its name, the held-out images halved by a hash of their keys.

    Args:
        emoji: folder of the emoji.
        out: where the glyphs are, or will be drawn.
    """
    if name == "emoji":
        train, held_out, names = load_emoji(emoji)
    else:
        train, held_out, names = load_glyphs(out / "glyphs", IMAGES[name], GLYPH_TEST_IMAGES)
    return StudyData(train, halves_of(held_out), names)


def halves_of(pairs: Pairs) -> dict[str, Pairs]:
    """Divide pairs by a hash of their keys."""
    side = [zlib.crc32(key.encode()) % 2 for key in pairs.keys]
    return {half: subset(pairs, np.flatnonzero(np.equal(side, i)).tolist()) for i, half in enumerate(HALVES)}
