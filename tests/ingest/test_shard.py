"""Pictures that img2dataset's resizer alone would store wrongly."""

import io
import os

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from beamclip.ingest.shard import UprightResizer

RED, BLUE = (200, 0, 0), (0, 0, 200)


def half_transparent() -> Image.Image:
    """60 x 40, the upper half red, the lower half transparent over blue."""
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[:20] = (*RED, 255)
    pixels[20:, :, :3] = BLUE
    return Image.fromarray(pixels)


def transparent_pictures() -> dict[str, bytes]:
    palette = Image.fromarray(np.repeat([0, 1], 20).astype(np.uint8)[:, None].repeat(60, 1), "P")
    palette.putpalette([*RED, *BLUE])
    grey = Image.fromarray(np.repeat([200, 7], 20).astype(np.uint8)[:, None].repeat(60, 1))
    rgb = palette.convert("RGB")
    return {
        "rgba": encode(half_transparent()),
        "la": encode(half_transparent().convert("LA")),
        "palette": encode(palette, transparency=1),
        "rgb_trns": encode(rgb, transparency=BLUE),
        "grey_trns": encode(grey, transparency=7),
        "webp": encode(half_transparent(), "WEBP", lossless=True),
        "rgba16": png16(np.asarray(half_transparent()).astype(np.uint16) * 257),
    }


def png16(pixels: np.ndarray) -> bytes:
    import cv2

    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


def lying_photo() -> bytes:
    """Stored 60 x 40 with a red left half; its EXIF data asks for a quarter turn clockwise."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def resizers() -> dict[tuple[str, str], UprightResizer]:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    modes = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
    return {
        (mode, form): UprightResizer(
            Resizer(30, mode, False, encode_format=form, encode_quality=quality, skip_reencode=form == "png")
        )
        for mode in modes
        for form, quality in (("jpg", 95), ("png", 6))
    }


@pytest.mark.parametrize("mode", ["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"])
@pytest.mark.parametrize("form", ["jpg", "png"])
def test_background_is_white_in_every_mode(
    resizers: dict[tuple[str, str], UprightResizer], mode: str, form: str
) -> None:
    for name, data in transparent_pictures().items():
        stored, width, height, _, _, error = resizers[mode, form](io.BytesIO(data))
        assert error is None, name
        pixels = pixels_of(stored)
        assert pixels.shape == (height, width, 3)
        assert pixels[-2:, width // 2].min() > 245, name
        assert pixels[height // 2 - 5, width // 2].min() < 100 or name in ("la", "grey_trns"), name


@pytest.mark.parametrize("form", ["jpg", "png"])
def test_sixteen_bit_values_keep_their_brightness(
    resizers: dict[tuple[str, str], UprightResizer], form: str
) -> None:
    grey = np.full((40, 60), 100 * 257, np.uint16)
    for data in (png16(grey), png16(np.stack([grey] * 3, -1)), encode(Image.fromarray(grey), "TIFF")):
        stored = resizers["no", form](io.BytesIO(data))[0]
        assert Image.open(io.BytesIO(stored)).mode in ("L", "RGB")
        assert abs(pixels_of(stored) - 100).max() <= 2


def test_undecodable_bytes_are_an_error_message_and_no_exception(
    resizers: dict[tuple[str, str], UprightResizer],
) -> None:
    for data in (b"", b"<html>", transparent_pictures()["rgba"][:40], lying_photo()[:200], b"II*\0junk"):
        stored, *_, error = resizers["no", "jpg"](io.BytesIO(data))
        assert stored is None
        assert error
