"""Scenes of the embedded corpus and the captions that describe them.

Everything is a function of a `random.Random`, so that a seed decides pixels and words alike. Ink is always
dark and its ground light, sizes and tilts stay mild: an arrow keeps its direction, and what a symbol looks
like can be learnt from a few thousand drawings.

Half of the captions name the symbol and nothing else. The rest add one or two details. If captions always
named the colours, colours alone would nearly satisfy a contrastive loss: only the few pairs of a batch that
share both colours would still teach a model to tell symbols apart.
"""

import random
import re

from beamclip.corpus.drawing import Pattern, Rgb, Scene, brightness
from beamclip.corpus.symbols import Symbol

INKS: dict[str, Rgb] = {
    "red": (214, 39, 40),
    "green": (40, 150, 60),
    "blue": (35, 90, 210),
    "purple": (130, 60, 180),
    "brown": (130, 80, 45),
    "black": (20, 20, 20),
}
GROUNDS: dict[str, Rgb] = {
    "white": (250, 250, 250),
    "grey": (195, 195, 195),
    "cream": (250, 238, 200),
    "light blue": (190, 218, 248),
    "light green": (200, 236, 200),
    "light pink": (252, 215, 226),
}
_GROUND_WORDS: dict[Pattern, tuple[str, ...]] = {
    "plain": ("a {} background", "a plain {} background", "{}"),
    "shaded": ("a shaded {} background",),
    "ruled": ("ruled {} paper",),
    "squared": ("squared {} paper",),
    "dotted": ("dotted {} paper",),
}
_PATTERN_WEIGHTS: dict[Pattern, int] = {"plain": 5, "shaded": 2, "ruled": 1, "squared": 1, "dotted": 1}
_BARE_SHARE = 0.5
_BARE_CAPTIONS = (
    "{name}",
    "{symbol}",
    "a picture of {symbol}",
    "a drawing of {symbol}",
    "{family}: {name}",
)
_DETAILED_CAPTIONS = (
    "{inked}",
    "{name} in {ink}",
    "{sized}",
    "{symbol} on {ground}",
    "{symbol}{tilt}",
    "{symbol}{place}",
    "{inked} on {ground}",
)

# By sound: an umbrella and an x, but a euro sign and a universal recycling symbol.
_VOWEL_SOUND = re.compile(r"[aio]|e(?!uro)|u(?!nion|niversal|ranus)|(?:l|x|xor) ")

# Luma levels, of 255: enough for thin strokes to be seen at 48 pixels.
_MIN_CONTRAST = 90
_MAX_TILT = 12.0
_SAID_TILT = 6.0
_SMALL, _LARGE = 0.58, 0.76


def draw_pair(symbol: Symbol, rng: random.Random) -> tuple[Scene, str]:
    """Draw a random scene for the symbol, and a caption that fits it and contains the symbol's name."""
    ink = rng.choice(list(INKS))
    contrasting = [name for name in GROUNDS if _contrast(INKS[ink], GROUNDS[name]) >= _MIN_CONTRAST]
    ground = rng.choice(contrasting)
    patterns, weights = zip(*_PATTERN_WEIGHTS.items(), strict=True)
    extent = rng.uniform(0.5, 0.84)
    # A tilted glyph reaches a little farther than its extent; what is left is free for its position.
    freedom = max(0.0, 1 - 1.15 * extent) / 2
    scene = Scene(
        ink=_jittered(INKS[ink], rng),
        ground=_jittered(GROUNDS[ground], rng),
        pattern=rng.choices(patterns, weights)[0],
        extent=extent,
        angle=rng.uniform(-_MAX_TILT, _MAX_TILT),
        centre=(0.5 + rng.uniform(-freedom, freedom), 0.5 + rng.uniform(-freedom, freedom)),
    )
    return scene, _caption(symbol, scene, ink, ground, rng)


def _caption(symbol: Symbol, scene: Scene, ink: str, ground: str, rng: random.Random) -> str:
    size = "small " if scene.extent < _SMALL else "large " if scene.extent > _LARGE else ""
    captions = _BARE_CAPTIONS if rng.random() < _BARE_SHARE else _DETAILED_CAPTIONS
    return rng.choice(captions).format(
        name=symbol.name,
        symbol=with_article(symbol.name, symbol.name),
        inked=with_article(f"{ink} {symbol.name}", symbol.name),
        sized=with_article(f"{size}{symbol.name}", symbol.name),
        family=symbol.parents[0],
        ink=ink,
        ground=rng.choice(_GROUND_WORDS[scene.pattern]).format(ground),
        tilt=_tilt_words(scene.angle),
        place=_place_words(scene.centre),
    )


def with_article(phrase: str, name: str) -> str:
    """Put "a" or "an" before the phrase, unless its name is a plural such as "crossed swords"."""
    head = re.split(r" (?:with|for|of|from|in|and|to|on|over|between|without) ", name)[0]
    if re.search(r"[^sui]s$", head):
        return phrase
    return f"{'an' if _VOWEL_SOUND.match(phrase) else 'a'} {phrase}"


def _tilt_words(angle: float) -> str:
    if abs(angle) < _SAID_TILT:
        return ""
    return ", tilted left" if angle > 0 else ", tilted right"


def _place_words(centre: tuple[float, float]) -> str:
    x, y = centre
    side = "left" if x < 0.42 else "right" if x > 0.58 else ""
    level = "upper" if y < 0.42 else "lower" if y > 0.58 else ""
    if side and level:
        return f", in the {level} {side} corner"
    if side:
        return f", to the {side}"
    return {"upper": ", near the top", "lower": ", near the bottom", "": ""}[level]


def _contrast(one: Rgb, other: Rgb) -> float:
    return abs(brightness(one) - brightness(other))


def _jittered(colour: Rgb, rng: random.Random) -> Rgb:
    red, green, blue = (min(255, max(0, level + rng.randint(-10, 10))) for level in colour)
    return red, green, blue
