"""Test pictures in which neighbouring pixels differ, as arrays and as encoded files."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture encoded as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Return independent random values, uint8 [height, width, channels]."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def photo(width: int, height: int) -> Image.Image:
    """Return an RGB picture of noise over a gradient, so that a shift by a pixel changes every value."""
    ramp = np.linspace(0, 128, width)[None, :, None] + np.linspace(0, 64, height)[:, None, None]
    return Image.fromarray((ramp + noise(width, height) // 5).astype(np.uint8))
