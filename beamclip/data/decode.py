"""Decode encoded images to the same pixels for ingest, training, embedding and evaluation.

Every picture passes `image_headers.judge` first. Pillow decodes it, with two exceptions. A common JPEG goes
straight to libjpeg-turbo, which gives Pillow's pixels sooner; if that refuses or warns, Pillow decodes it
after all and alone decides whether it is corrupt. A portable anymap needs no decoder.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from beamclip.data.image_containers import exif_orientation
from beamclip.data.image_headers import judge, pnm_samples
from beamclip.data.image_limits import (
    CORRUPT_IMAGE,
    DECODING_BYTES,
    UNKNOWN_RANGE,
    UNSUPPORTED_COLOURS,
    EncodedImage,
    ImageRefused,
    check_size,
)
from beamclip.heap import trim_heap

REDUCTIONS = (8, 4, 2)
"""Divisors of a JPEG's size at which decoding is faster; libjpeg-turbo offers others, which are slow."""

LARGE_BYTES = 150_000_000
"""Memory for one picture above which it goes back to the system at once. A process that trains tells its C
library to keep what it frees, and each thread keeps its own."""

_BAND = 256
"""Rows that are copied from Pillow at a time: Pillow makes a second copy of what it hands over."""

_WHITE = (255, 255, 255)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the turn that makes a picture upright."""


class _Memory:
    """A budget of bytes that threads share; a thread that asks for more than are left waits."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._returned = Condition()

    @contextmanager
    def reserved(self, amount: int) -> Iterator[None]:
        """Reserve bytes inside the block; `amount` may not exceed the total."""
        with self._returned:
            self._returned.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._returned:
                self._left += amount
                self._returned.notify_all()


_memory = _Memory(DECODING_BYTES)


@contextmanager
def judged(encoded: bytes) -> Iterator[EncodedImage]:
    """Check an image against the limits, and reserve the memory to decode it inside the block.

    However many threads decode, the pictures in such blocks take at most DECODING_BYTES of the process.

    Raises:
        ImageRefused: as `image_headers.judge`.
    """
    image = judge(encoded)
    with _memory.reserved(image.memory):
        try:
            yield image
        finally:
            if image.memory > LARGE_BYTES:
                trim_heap()


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to RGB, upright, on a white background.

    Raises:
        ImageRefused: the bytes are not a complete image of a known format, or exceed the limits.
    """
    with judged(encoded) as image:
        return picture_of(image)


def decode_pixels(encoded: bytes) -> NDArray[np.uint8]:
    """Decode to the pixels of `decode_image`, faster.

    Returns:
        uint8 [H, W, 3], perhaps read-only.

    Raises:
        ImageRefused: as decode_image.
    """
    with judged(encoded) as image:
        return pixels_of(image)


def picture_of(image: EncodedImage) -> Image.Image:
    """Decode a judged image to RGB, upright, on a white background.

    Raises:
        ImageRefused: it cannot be decoded.
    """
    if image.format == "PPM":
        return Image.fromarray(_anymap(image)).convert("RGB")
    try:
        picture: Image.Image = Image.open(io.BytesIO(image.content), formats=[image.format])
        check_size(*picture.size)
        picture.load()
    except ImageRefused:
        raise
    except Exception as error:  # Pillow raises a dozen types, from SyntaxError to MemoryError
        raise ImageRefused(CORRUPT_IMAGE, f"cannot decode the image: {error}") from error
    orientation = image.orientation
    if image.format == "AVIF":  # Pillow passes a turn of the container on as EXIF
        orientation = exif_orientation(picture.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    picture = on_white(_eight_bits(picture, image))
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def pixels_of(image: EncodedImage) -> NDArray[np.uint8]:
    """Decode a judged image to the pixels of `picture_of`, faster: uint8 [H, W, 3], perhaps read-only.

    Raises:
        ImageRefused: it cannot be decoded.
    """
    pixels = jpeg_pixels(image)
    if pixels is not None:
        return pixels
    picture = picture_of(image)
    width, height = picture.size
    if height <= _BAND:
        return np.asarray(picture)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _BAND):
        band = picture.crop((0, top, width, min(top + _BAND, height)))
        pixels[top : top + _BAND] = np.asarray(band)
    return pixels


def is_plain_jpeg(image: EncodedImage) -> bool:
    """Whether the fast decoder takes an image: an upright JPEG with one or three channels."""
    return image.channels in (1, 3) and image.orientation == 1


def jpeg_pixels(image: EncodedImage, reduction: int = 1) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG that has no faults; return None for any other image.

    Args:
        reduction: 1, or one of REDUCTIONS, not so large that less than a pixel would be left.

    Returns:
        uint8 [H, W, 3], the image's size over `reduction`, rounded up.
    """
    if not is_plain_jpeg(image):
        return None
    # The decoder takes the smallest scale at which the sides are no shorter than these; 0 means no scaling.
    # The full size would not mean that: in the smallest images a scale may keep it, but not the pixels.
    width, height = (-(-edge // reduction) if reduction > 1 else 0 for edge in (image.width, image.height))
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(image.content, min_width=width, min_height=height)
    except Exception:  # warnings raise too; if Pillow fails as well, its message is better
        return None
    return pixels


def _anymap(image: EncodedImage) -> NDArray[np.uint8]:
    """Read the pixels of a binary PBM, PGM or PPM: [H, W] or [H, W, 3]."""
    data, channels, largest = pnm_samples(image)
    width, height = image.width, image.height
    row_bytes = (width + 7) // 8 if largest == 1 and image.content[:2] == b"P4" else 0
    kind = ">u2" if largest > 255 else "u1"
    wanted = height * (row_bytes or width * channels * np.dtype(kind).itemsize)
    if not 0 < largest < 65536 or len(data) < wanted:
        raise ImageRefused(CORRUPT_IMAGE, f"{len(data)} bytes of pixels instead of {wanted}")
    samples = np.frombuffer(data, kind, count=wanted // np.dtype(kind).itemsize)
    if row_bytes:  # a set bit is black
        return (1 - np.unpackbits(samples.reshape(height, row_bytes), axis=1)[:, :width]) * np.uint8(255)
    shape = (height, width, 3) if channels == 3 else (height, width)
    if largest == 255:
        return samples.reshape(shape)
    return _scaled(samples.reshape(shape), largest)


def _scaled(samples: NDArray[Any], largest: float) -> NDArray[np.uint8]:
    """Scale samples from 0..largest to 0..255."""
    scaled = samples.astype(np.float32)
    scaled *= 255.0 / largest
    return np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)


def _eight_bits(picture: Image.Image, image: EncodedImage) -> Image.Image:
    """Bring a picture, and its transparent colour if it has one, to eight bits a sample."""
    key = picture.info.get("transparency")
    if picture.mode.startswith("I") or picture.mode == "F":
        samples = np.asarray(picture)
        scaled = Image.fromarray(_scaled(samples, _largest(samples, image)))
        if isinstance(key, int):
            scaled.putalpha(Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8)))
        return scaled
    # Pillow scales the samples of a PNG, but not the colour that is transparent.
    if image.format == "PNG" and image.depth in (2, 4) and isinstance(key, int) and picture.mode == "L":
        picture.info["transparency"] = key * 255 // (2**image.depth - 1)
    elif image.depth == 16 and isinstance(key, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in key)
    return picture


def _largest(samples: NDArray[Any], image: EncodedImage) -> float:
    """Find the sample value of white.

    32-bit integers and floats do not say. Their range is inferred from their values: 0..1 or 0..255 for
    floats, 0..255 or 0..65535 for integers. Values that fit no range, and floats that might fit both, are
    refused.

    Raises:
        ImageRefused: the range is not known.
    """
    if image.format != "TIFF":
        return 65535
    if samples.dtype.kind == "u":
        return 2**image.depth - 1
    low, high = float(samples.min()), float(samples.max())
    # With a maximum from 1 to 16, a dark picture in 0..255 is no likelier than one in 0..1 that overshoots.
    of_floats, of_integers = {1: (0, 1), 255: (16, 255)}, {255: (0, 255), 65535: (256, 65535)}
    for largest, (least, most) in (of_floats if samples.dtype.kind == "f" else of_integers).items():
        if low >= 0 and least <= high <= most:
            return largest
    raise ImageRefused(UNKNOWN_RANGE, f"{samples.dtype} from {low:g} to {high:g}")


def on_white(picture: Image.Image) -> Image.Image:
    """Bring a picture of eight bits a sample to RGB, its transparent parts on white.

    Raises:
        ImageRefused: Pillow cannot convert its colours.
    """
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    try:
        if picture.mode == "La":
            picture = picture.convert("LA")
        if picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*_WHITE, 255)), picture)
        return picture.convert("RGB")
    except ValueError as error:
        raise ImageRefused(UNSUPPORTED_COLOURS, str(error)) from error
