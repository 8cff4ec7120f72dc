"""From encoded bytes to pixels: Pillow decides what an image is, libjpeg-turbo does most of the work.

Pillow is asked for everything but the common JPEG, and for whatever the fast decoder refuses or warns of: it
alone decides that an image is corrupt. Both stand on libjpeg-turbo, and give equal pixels.
"""

import contextlib
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

REDUCTIONS = (8, 4, 2)
"""Divisors of a JPEG's size by which it can be decoded faster; others are offered, and are slow."""

_WHITE = (255, 255, 255)
_JPEG = b"\xff\xd8\xff"
_APP1, _SCAN = b"\xff\xe1", b"\xff\xda"
"""Markers of a JPEG's segments: EXIF or XMP, and the image data, which come last."""


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to RGB, upright, on a white background.

    Raises:
        ValueError: the bytes are no complete image of a format that Pillow knows.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception as error:  # Pillow raises a dozen types, from SyntaxError to DecompressionBombError
        raise ValueError(f"cannot decode the image: {error}") from error
    with contextlib.suppress(Exception):  # damaged EXIF is no reason to lose an image whose pixels are whole
        ImageOps.exif_transpose(image, in_place=True)
    return _on_white(image)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64) / 257.0
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*_WHITE, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def decode_pixels(encoded: bytes) -> NDArray[np.uint8]:
    """The pixels of decode_image, sooner.

    Returns:
        uint8 [H, W, 3], perhaps read-only.

    Raises:
        ValueError: the bytes are no complete image of a format that Pillow knows.
    """
    pixels = decode_jpeg(encoded)
    return np.asarray(decode_image(encoded)) if pixels is None else pixels


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of a JPEG for the fast decoder; None for any other image."""
    if not encoded.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except Exception:  # whatever it is, Pillow finds better words for it
        return None
    too_large = Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
    return None if too_large or colours not in ("YCbCr", "Gray") else (width, height)


def decode_jpeg(encoded: bytes, reduction: int = 1) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG that is upright and without fault; None for any other image.

    Args:
        reduction: 1, or one of REDUCTIONS, not so large that less than a pixel would be left.

    Returns:
        uint8 [H, W, 3], the image's size over `reduction`, rounded up.
    """
    size = jpeg_size(encoded)
    if size is None or _is_turned(encoded):
        return None
    # The decoder takes the smallest scale that keeps these; zeros ask for none. In the smallest images a
    # scale may keep the size, and the pixels would still differ.
    width, height = (-(-edge // reduction) if reduction > 1 else 0 for edge in size)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, min_width=width, min_height=height)
    except Exception:  # as above; a warning, such as of missing data, raises too
        return None
    return pixels


def _is_turned(encoded: bytes) -> bool:
    """Whether a JPEG's pixels are not upright, or only Pillow could say."""
    if not _may_have_exif(encoded):
        return False
    try:
        orientation = Image.open(io.BytesIO(encoded)).getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return True
    return bool(orientation != 1)


def _may_have_exif(encoded: bytes) -> bool:
    """Whether EXIF or XMP comes before a JPEG's image data. Pillow takes longer to say than a small image."""
    place = 2
    while (marker := encoded[place : place + 2]) != _SCAN:
        if marker == _APP1 or not marker.startswith(b"\xff"):
            return True
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return False
