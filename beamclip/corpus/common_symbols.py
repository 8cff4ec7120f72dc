"""Sixty-four of the corpus's symbols that a person recognises at a glance, under everyday names.

The full list (symbols.py) tells 878 classes apart, many of which differ by a stroke: a model that names one
drawing in ten does well there, and nobody can tell by looking. These were picked by hand from it: things and
signs of everyday life, each with an outline of its own at 32 pixels.
"""

from dataclasses import replace
from functools import cache
from typing import Literal

from beamclip.corpus.symbols import Symbol, all_symbols

SymbolList = Literal["common", "all"]
"""common: those of this module. all: those of symbols.py."""

COMMON_NAMES = {
    "☀": "sun",
    "☁": "cloud",
    "☂": "umbrella",
    "☃": "snowman",
    "❄": "snowflake",
    "☾": "moon",
    "⚡": "lightning bolt",
    "☘": "shamrock",
    "⚘": "flower",
    "♚": "chess king",
    "♛": "chess queen",
    "♜": "chess rook",
    "♝": "chess bishop",
    "♞": "chess knight",
    "♠": "spade",
    "♥": "heart",
    "♦": "diamond",
    "♣": "club",
    "⚄": "die",
    "☺": "smiling face",
    "😺": "cat face",
    "✌": "victory hand",
    "☞": "pointing hand",
    "⚓": "anchor",
    "✂": "scissors",
    "⚙": "gear",
    "⚖": "scales",
    "⚔": "crossed swords",
    "☎": "telephone",
    "✉": "envelope",
    "✏": "pencil",
    "⌨": "keyboard",
    "⌂": "house",
    "☕": "cup of coffee",
    "⚑": "flag",
    "✈": "airplane",
    "☠": "skull and crossbones",
    "☢": "radiation sign",
    "☣": "biohazard sign",
    "⚠": "warning sign",
    "♻": "recycling sign",
    "♿": "wheelchair",
    "✓": "check mark",
    "✗": "cross mark",
    "☮": "peace sign",
    "☯": "yin yang",
    "⚛": "atom",
    "⚜": "fleur-de-lis",
    "♀": "female sign",
    "♂": "male sign",
    "★": "star",
    "♪": "music note",
    "→": "right arrow",
    "←": "left arrow",
    "↑": "up arrow",
    "↓": "down arrow",
    "↻": "circular arrow",
    "■": "square",
    "●": "circle",
    "▲": "triangle",
    "€": "euro sign",
    "£": "pound sign",
    "∞": "infinity sign",
    "π": "pi sign",
}


@cache
def common_symbols() -> tuple[Symbol, ...]:
    """Return the symbols of COMMON_NAMES in its order, under its names; none of them is novel."""
    known = {symbol.char: symbol for symbol in all_symbols()}
    return tuple(replace(known[char], name=name, novel=False) for char, name in COMMON_NAMES.items())


def listed_symbols(which: SymbolList) -> tuple[Symbol, ...]:
    """Return the symbols of a list."""
    return common_symbols() if which == "common" else all_symbols()
