"""Draws one symbol of the embedded corpus: fonts, drawing styles, grounds, placement.

Only fonts that ship with matplotlib are used, so that the corpus needs neither network nor system fonts.
A style is a font and a finish. A finish turns the glyph's shape into layers, each a mask and a role; the
scene says which colour a role has. Masks are cached per process, so that an image costs two or three
affine transforms and a PNG.
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Rgb = tuple[int, int, int]
Finish = Literal["plain", "shadow", "sticker", "outline", "wash", "halftone", "engraved"]
Pattern = Literal["plain", "shaded", "ruled", "squared", "dotted"]
Role = Literal["ink", "edge", "shade", "wash"]

# Masks are drawn this much larger and reduced once: font outlines at 50 pixels alone would be uneven.
_OVERSAMPLING = 2
_MEASURING_SIZE = 128.0
# Side of a mask over that of its glyph: leaves room for rotation, shadow and outline.
_CANVAS = 1.4


@dataclass(frozen=True)
class Style:
    """A style that any symbol can be drawn in."""

    font: str
    """File name, without ending, among matplotlib's TrueType fonts."""
    finish: Finish
    """What is done to the shape of the glyph."""


STYLES = {
    "sans": Style("DejaVuSans", "plain"),
    "bold": Style("DejaVuSans-Bold", "plain"),
    "shadow": Style("DejaVuSans", "shadow"),
    "sticker": Style("DejaVuSans", "sticker"),
    "outline": Style("DejaVuSans", "outline"),
    "wash": Style("DejaVuSans", "wash"),
    "halftone": Style("DejaVuSans", "halftone"),
    "stix": Style("STIXGeneral", "plain"),
    "serif": Style("DejaVuSerif", "plain"),
    "engraved": Style("DejaVuSans", "engraved"),
}


@dataclass(frozen=True)
class Scene:
    """Colours, ground and placement of a drawing; with symbol, style and size, they decide its pixels."""

    ink: Rgb
    """Colour of the glyph."""
    ground: Rgb
    """Colour behind it."""
    pattern: Pattern
    """What the ground carries, in a shade near its own colour."""
    extent: float
    """Longest side of the glyph before rotation, as a share of the image's side."""
    angle: float
    """Degrees, counter-clockwise."""
    centre: tuple[float, float]
    """Middle of the glyph as shares of the image's side, from the left and from the top."""


def draw_scene(char: str, style: str, scene: Scene, image_size: int) -> Image.Image:
    """Draw one symbol in a scene: an RGB image, `image_size` pixels square. `style` is a key of STYLES."""
    image = _draw_ground(scene, image_size)
    glyph_side = round(0.8 * image_size)
    coefficients = _placement(scene, image_size, glyph_side)
    colours: dict[Role, Rgb] = {
        "ink": scene.ink,
        "edge": _edge_colour(scene),
        "shade": _shaded(scene.ground, 0.4),
        "wash": _mixed(scene.ink, scene.ground, 0.4),
    }
    for role, mask in glyph_layers(char, style, glyph_side):
        placed = mask.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
        image.paste(colours[role], mask=placed)
    return image


@lru_cache(maxsize=8192)
def glyph_layers(char: str, style: str, side: int) -> tuple[tuple[Role, Image.Image], ...]:
    """Return a symbol's layers from back to front, as role and 8-bit mask; its longest side is `side` pixels.

    Raises:
        ValueError: the font draws nothing for the character.
    """
    shape = _draw_shape(char, STYLES[style].font, side * _OVERSAMPLING)
    layers = _FINISHES[STYLES[style].finish](shape, side * _OVERSAMPLING)
    return tuple((role, mask.reduce(_OVERSAMPLING)) for role, mask in layers)


def _draw_shape(char: str, font: str, side: int) -> Image.Image:
    """Draw the glyph's mask, centred by its own outline and sized so that its longest side is `side`."""
    extent = max(_set_glyph(char, _measuring_font(font)).size)
    if extent == 0:
        raise ValueError(f"font {font} draws nothing for U+{ord(char):04X}; remove the symbol from the list")
    # Rendered in the very size that fits: scaling afterwards would blur glyphs, small ones most.
    glyph = _set_glyph(char, _open_font(font, _MEASURING_SIZE * side / extent))
    canvas_side = round(side * _CANVAS / _OVERSAMPLING) * _OVERSAMPLING
    canvas = Image.new("L", (canvas_side, canvas_side))
    canvas.paste(glyph, ((canvas_side - glyph.width) // 2, (canvas_side - glyph.height) // 2))
    return canvas


def _set_glyph(char: str, face: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw the glyph's mask and crop it to its ink; it has no pixels if there is none."""
    # The font's own box also holds its margins and advance, so the ink is measured on the drawing.
    left, top, right, bottom = face.getbbox(char, anchor="ls")
    drawn = Image.new("L", (round(right - left) + 4, round(bottom - top) + 4))
    ImageDraw.Draw(drawn).text((2 - left, 2 - top), char, fill=255, font=face, anchor="ls")
    return drawn.crop(drawn.getbbox() or (0, 0, 0, 0))


@cache
def _measuring_font(font: str) -> ImageFont.FreeTypeFont:
    return _open_font(font, _MEASURING_SIZE)


def _open_font(font: str, size: float) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    # The basic layout is in every build of Pillow; raqm is not, and would change the bytes.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _finish_plain(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    return [("ink", shape)]


def _finish_shadow(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    moved = Image.new("L", shape.size)
    moved.paste(shape, (side // 14, side // 14))
    return [("shade", moved), ("ink", shape)]


def _finish_sticker(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    return [("edge", _grown(shape, side // 14)), ("ink", shape)]


def _finish_outline(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    """A contour around the shape, which is itself in the colour of a sticker's edge."""
    return [("ink", _grown(shape, side // 24)), ("edge", shape)]


def _finish_wash(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    """A contour in ink, around a shape in a thin wash of it."""
    return [("ink", _grown(shape, side // 30)), ("wash", shape)]


def _finish_halftone(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    return [("ink", ImageChops.multiply(shape, _dots(shape.size[0], side // 9)))]


def _finish_engraved(shape: Image.Image, side: int) -> list[tuple[Role, Image.Image]]:
    """A contour around the shape and hatching inside, so that filled and outlined symbols stay apart."""
    hatched = ImageChops.multiply(shape, _hatching(shape.size[0], side // 10))
    contour = ImageChops.subtract(_grown(shape, side // 50), shape)
    return [("ink", ImageChops.lighter(contour, hatched))]


_FINISHES = {
    "plain": _finish_plain,
    "shadow": _finish_shadow,
    "sticker": _finish_sticker,
    "outline": _finish_outline,
    "wash": _finish_wash,
    "halftone": _finish_halftone,
    "engraved": _finish_engraved,
}


def _grown(shape: Image.Image, pixels: int) -> Image.Image:
    """The shape grown by `pixels` on every side."""
    return shape.filter(ImageFilter.GaussianBlur(pixels / 2)).point(
        [min(255, level * 8) for level in range(256)]
    )


@cache
def _dots(side: int, period: int) -> Image.Image:
    """Round dots on a square grid, half of the area filled."""
    dots = Image.new("L", (side, side))
    draw = ImageDraw.Draw(dots)
    radius = period * 2 / 5
    for x in range(period // 2, side, period):
        for y in range(period // 2, side, period):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return dots


@cache
def _hatching(side: int, period: int) -> Image.Image:
    """Diagonal lines, half of each period filled."""
    lines = Image.new("L", (side, side))
    draw = ImageDraw.Draw(lines)
    for start in range(-side, side, period):
        draw.line((start, side, start + side, 0), fill=255, width=period * 2 // 5)
    return lines


def _placement(scene: Scene, image_size: int, glyph_side: int) -> tuple[float, ...]:
    """Return the coefficients by which Pillow maps a pixel of the image to one of the glyph's mask."""
    canvas_side = round(glyph_side * _CANVAS)
    step = glyph_side / (scene.extent * image_size)
    radians = math.radians(scene.angle)
    cos, sin = step * math.cos(radians), step * math.sin(radians)
    x, y = (share * image_size for share in scene.centre)
    middle = canvas_side / 2
    return (cos, -sin, middle - cos * x + sin * y, sin, cos, middle - sin * x - cos * y)


def _draw_ground(scene: Scene, image_size: int) -> Image.Image:
    image = Image.new("RGB", (image_size, image_size), scene.ground)
    if scene.pattern != "plain":
        image.paste(_shaded(scene.ground, 0.25), mask=_pattern_mask(scene.pattern, image_size))
    return image


@cache
def _pattern_mask(pattern: Pattern, side: int) -> Image.Image:
    if pattern == "shaded":
        return Image.linear_gradient("L").resize((side, side))
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    step = max(4, side // 8)
    for near in range(step // 2, side, step):
        if pattern == "dotted":
            draw.point([(far, near) for far in range(step // 2, side, step)], fill=255)
            continue
        draw.line((0, near, side, near), fill=160)
        if pattern == "squared":
            draw.line((near, 0, near, side), fill=160)
    return mask


def brightness(colour: Rgb) -> float:
    """Return the luma of a colour, 0 to 255 (ITU-R BT.601 weights)."""
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _edge_colour(scene: Scene) -> Rgb:
    """White or black: whichever is farther from the ink."""
    return (255, 255, 255) if brightness(scene.ink) < 128 else (0, 0, 0)


def _shaded(colour: Rgb, amount: float) -> Rgb:
    """The colour moved towards black by `amount`, or towards white where it is dark already."""
    target = 255 if brightness(colour) < 80 else 0
    red, green, blue = (round(level + amount * (target - level)) for level in colour)
    return red, green, blue


def _mixed(one: Rgb, other: Rgb, share: float) -> Rgb:
    """The colour that has `share` of one colour and the rest of the other."""
    red, green, blue = (round(share * a + (1 - share) * b) for a, b in zip(one, other, strict=True))
    return red, green, blue
