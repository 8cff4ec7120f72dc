"""Every format and mode that Pillow writes, by both ways of reading: ingest and training see one picture."""

import io
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import encode
from PIL import Image

from beamclip.data.config import Augmentation
from beamclip.data.decode import decode_image
from beamclip.data.image_limits import REFUSALS, ImageRefused
from beamclip.data.transforms import load_evaluation_image, load_training_image
from beamclip.ingest.resizer import UprightResizer

EDGE = 32
WHOLE = Augmentation(crop_scale_min=1.0, crop_ratio=1.0, scaled_decoding=False)

# Formats whose pixels are exact, with the modes in which what was written is what a viewer shows.
EXACT = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B", "F"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
}
READ = {*EXACT, "JPEG", "MPO", "WEBP", "AVIF"}


def blocks(channels: int = 3) -> NDArray[np.uint8]:
    """4 x 4 blocks of 8 x 8 pixels: lossy formats keep them well."""
    colours = np.random.default_rng(1).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    return np.kron(colours, np.ones((8, 8, 1), np.uint8))


def in_mode(mode: str) -> tuple[Image.Image, NDArray[np.float64]]:
    """A picture, and what a viewer shows of it on white: float [EDGE, EDGE, 3]."""
    grey, colour, alpha = blocks(1)[:, :, 0], blocks(), np.repeat([0, 255], EDGE // 2)[None].repeat(EDGE, 0)
    shown: NDArray[Any]
    if mode in ("L", "I", "F"):
        picture, shown = Image.fromarray(grey.astype({"L": "u1", "I": "i4", "F": "f4"}[mode])), grey
    elif mode in ("I;16", "I;16B"):
        picture, shown = Image.fromarray(grey.astype("<u2" if mode == "I;16" else ">u2") * 257), grey
    elif mode == "1":
        shown = np.where(grey > 127, 255, 0)
        picture = Image.fromarray(shown.astype(np.uint8)).convert("1")
    elif mode == "P":
        picture = Image.fromarray(colour).quantize(16)
        shown = np.asarray(picture.convert("RGB"))
    elif mode == "LA":
        picture, shown = Image.fromarray(np.stack([grey, alpha.astype(np.uint8)], 2)), grey
    elif mode == "RGBA":
        picture, shown = Image.fromarray(np.dstack([colour, alpha.astype(np.uint8)])), colour
    elif mode == "CMYK":
        picture, shown = Image.fromarray(colour).convert("CMYK"), colour
    else:
        picture, shown = Image.fromarray(colour).convert(mode), colour
    shown = shown[:, :, None].repeat(3, 2) if shown.ndim == 2 else shown
    if mode in ("LA", "RGBA"):
        shown = np.where(alpha[:, :, None] > 0, shown, 255)
    return picture, shown.astype(float)


@pytest.fixture(scope="module")
def resizer() -> UprightResizer:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset.resizer import Resizer

    return UprightResizer(Resizer(None, "no", True, encode_format="png", encode_quality=1))


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")
Image.init()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(Image.SAVE))
def test_ingest_and_training_agree_on_every_format_that_pillow_writes(
    kind: str, resizer: UprightResizer
) -> None:
    for mode in MODES:
        picture, shown = in_mode(mode)
        try:
            data = encode(picture, kind)
        except Exception:  # Pillow does not write this mode in this format, or needs a program for it
            continue
        stored, *_, error = resizer(io.BytesIO(data))
        exact = mode in EXACT.get(kind, ("L", "RGB"))
        if error is not None:
            with pytest.raises(ImageRefused) as refusal:
                decode_image(data)
            assert (refusal.value.reason, error in REFUSALS) == (error, True), mode
            assert not (exact and kind in READ), (mode, error)
            continue
        pixels = np.asarray(decode_image(data))
        assert kind in READ
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")), pixels)
        trained = load_training_image(data, np.full(16, 0.5, np.float32), EDGE, WHOLE)
        np.testing.assert_array_equal(trained, pixels)
        np.testing.assert_array_equal(load_evaluation_image(data, EDGE), pixels)
        if exact:
            assert np.abs(pixels - shown).mean() <= (0.6 if kind in EXACT else 12), (mode, pixels, shown)


def tiff(array: NDArray[Any], **options: Any) -> bytes:
    return encode(Image.fromarray(array), "TIFF", **options)


RAMP = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(8, 0)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (RAMP, None),
        (RAMP * 255, None),
        ((RAMP * 255).astype(np.int32), None),
        ((RAMP * 65535).astype(np.int32), None),
        ((RAMP * 65535).astype(np.uint16), None),
        (RAMP * 2, "image values of unknown range"),
        (RAMP - 0.5, "image values of unknown range"),
        (RAMP * np.nan, "image values of unknown range"),
        ((RAMP * 2**30).astype(np.int32), "image values of unknown range"),
        ((RAMP * 255 - 9).astype(np.int32), "image values of unknown range"),
    ],
)
def test_deep_tiffs_are_scaled_where_their_range_is_clear_and_else_refused(
    array: NDArray[Any], reason: str | None, resizer: UprightResizer
) -> None:
    data = tiff(array)
    if reason is None:
        assert np.abs(np.asarray(decode_image(data))[:, :, 0] - RAMP * 255).max() <= 1.0
        return
    with pytest.raises(ImageRefused, match=reason):
        decode_image(data)
    assert resizer(io.BytesIO(data))[-1] == reason


@pytest.mark.parametrize("depth", [8, 10, 12])
def test_avif_of_any_depth_shows_its_colours(depth: int, resizer: UprightResizer) -> None:
    cv2 = pytest.importorskip("cv2")
    colours = np.zeros((32, 64, 3))
    colours[:, :32], colours[:, 32:] = (200, 40, 40), (40, 60, 200)
    deep = (colours[:, :, ::-1] * ((2**depth - 1) / 255)).astype(np.uint8 if depth == 8 else np.uint16)
    options = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 95]
    data = cv2.imencode(".avif", deep, options)[1].tobytes()
    stored = np.asarray(Image.open(io.BytesIO(resizer(io.BytesIO(data))[0])))
    np.testing.assert_array_equal(stored, np.asarray(decode_image(data)))
    assert np.abs(stored - colours)[:, [8, 56]].max() < 5


@pytest.mark.parametrize("largest", [1, 100, 255, 1000, 65535])
@pytest.mark.parametrize("magic", [b"P5", b"P6"])
def test_anymaps_of_any_largest_value_are_scaled(magic: bytes, largest: int) -> None:
    values = np.linspace(0, largest, 60).astype(np.uint16).reshape(4, 5, 3)
    samples = values if magic == b"P6" else values[:, :, 0]
    data = b"%s\n# a comment\n5 4\n%d\n" % (magic, largest)
    data += samples.astype(">u2" if largest > 255 else "u1").tobytes()
    wanted = (samples * (255 / largest)).reshape(4, 5, -1)
    assert np.abs(np.asarray(decode_image(data)) - wanted).max() <= 0.501


@pytest.mark.parametrize(("depth", "key", "kind"), [(16, 257 * 7, "<u2"), (8, 7, "u1")])
def test_the_transparent_grey_of_a_png_turns_white(depth: int, key: int, kind: str) -> None:
    grey = np.repeat([key, key * 9], 4)[None].repeat(8, 0).astype(kind)
    pixels = np.asarray(decode_image(encode(Image.fromarray(grey), transparency=key)))
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 7].tolist() == [63] * 3


def test_the_transparent_grey_of_four_bits_turns_white() -> None:
    grey = Image.fromarray(np.repeat([7, 9], 4)[None].repeat(8, 0).astype(np.uint8))
    # With so few bits Pillow writes the low ones, and shows them 17 times as bright.
    pixels = np.asarray(decode_image(encode(grey, bits=4, transparency=7)))
    assert {tuple(pixels[0, 0]), tuple(pixels[0, 7])} == {(255, 255, 255), (153, 153, 153)}


def test_colour_profiles_change_nothing() -> None:
    """As in open_clip and img2dataset; the profile swaps nothing that we would show."""
    from PIL import ImageCms

    picture = Image.fromarray(blocks())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for kind in ("PNG", "TIFF"):
        pixels = np.asarray(decode_image(encode(picture, kind, icc_profile=profile)))
        np.testing.assert_array_equal(pixels, blocks())


def test_only_the_first_frame_is_shown() -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    for kind, options in {"GIF": {}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "AVIF": {}}.items():
        data = encode(first, kind, save_all=True, append_images=[second], **options)
        assert np.abs(np.asarray(decode_image(data)).astype(int) - [255, 0, 0]).max() < 12, kind
