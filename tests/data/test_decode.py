"""Bytes to pixels: formats, transparency, orientation, damage, and the fast decoder against Pillow."""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pictures import encode, noise, photo
from PIL import Image

from beamclip.data.decode import REDUCTIONS, decode_image, decode_pixels, is_plain_jpeg, jpeg_pixels
from beamclip.data.image_headers import judge
from beamclip.data.image_limits import ImageRefused


def decode_jpeg(encoded: bytes, reduction: int = 1) -> Any:
    """What the fast decoder makes of a file; None where it leaves it to Pillow."""
    try:
        return jpeg_pixels(judge(encoded), reduction)
    except ImageRefused:
        return None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_decode_to_rgb(kind: str) -> None:
    image = decode_image(encode(Image.new("RGB", (20, 10), (200, 100, 50)), kind))
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image).astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.7])
def test_bytes_that_are_no_whole_image_are_refused(kind: str, kept: float) -> None:
    encoded = encode(photo(64, 64), kind)
    for decode in (decode_image, decode_pixels):
        with pytest.raises(ImageRefused, match="corrupt image" if kept else "unsupported image format"):
            decode(encoded[: int(kept * len(encoded))])


def transparent_left() -> Image.Image:
    """The left half is clear, the right half red."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (4, 0, 8, 8))
    return image


def palette_left() -> bytes:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 255, 0, 0])
    image.paste(1, (4, 0, 8, 8))
    return encode(image, transparency=0)


def colour_key_left() -> bytes:
    """PNG may name one colour of an RGB image as the clear one."""
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    image.paste((255, 0, 0), (4, 0, 8, 8))
    return encode(image, transparency=(1, 2, 3))


TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "RGBA png": lambda: encode(transparent_left()),
    "RGBA webp": lambda: encode(transparent_left(), "WEBP", lossless=True),
    "palette png": palette_left,
    "palette gif": lambda: encode(transparent_left(), "GIF"),
    "colour key png": colour_key_left,
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_turn_white(name: str) -> None:
    pixels = np.asarray(decode_image(TRANSPARENT[name]()))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == [255, 0, 0]).all()


def test_transparent_grey_turns_white() -> None:
    pixels = np.asarray(decode_image(encode(transparent_left().convert("LA"))))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == pixels[0, 7, 0]).all()
    assert pixels[0, 7, 0] < 100


def test_half_transparent_pixels_mix_with_white() -> None:
    image = Image.new("RGBA", (4, 4), (100, 0, 200, 128))
    share = 128 / 255
    wanted = [share * value + (1 - share) * 255 for value in (100, 0, 200)]
    assert np.abs(np.asarray(decode_image(encode(image))) - np.array(wanted)).max() <= 1.0


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = np.asarray(decode_image(encode(Image.fromarray(deep))))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels - (deep / 257.0)[:, :, None]).max() <= 1.0


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise(9, 7, 1)[:, :, 0]
    pixels = np.asarray(decode_image(encode(Image.fromarray(grey))))
    assert (pixels == grey[:, :, None]).all()


def turned(image: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_photos_stand_upright(orientation: int, upright: Callable[[Any], Any]) -> None:
    pixels = noise(6, 4)
    decoded = decode_image(turned(Image.fromarray(pixels), orientation))
    np.testing.assert_array_equal(np.asarray(decoded), upright(pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_stand_upright(orientation: int) -> None:
    encoded = turned(photo(24, 16), orientation, "JPEG")
    np.testing.assert_array_equal(decode_pixels(encoded), np.asarray(decode_image(encoded)))
    assert (decode_jpeg(encoded) is not None) == (orientation == 1)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'


def odd_headers() -> dict[str, bytes]:
    """Turned JPEGs whose orientation is hard to find."""
    plain = encode(photo(24, 16), "JPEG")
    exif = turned(photo(24, 16), 6, "JPEG")
    return {
        "xmp": plain[:2] + segment(0xE1, XMP) + plain[2:],
        "exif after a colour profile that looks like image data": encode(
            photo(24, 16), "JPEG", icc_profile=b"\xff\xda" * 40, exif=b"Exif\0\0" + exif_of(exif)
        ),
        "exif after fill bytes": exif[:2] + b"\xff\xff" + exif[2:],
        "exif after a comment": exif[:2] + segment(0xFE, b"\xff\xda a comment") + exif[2:],
    }


def exif_of(encoded: bytes) -> bytes:
    return Image.open(io.BytesIO(encoded)).getexif().tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("name", odd_headers())
def test_orientation_is_found_wherever_pillow_finds_it(name: str) -> None:
    encoded = odd_headers()[name]
    pixels = decode_pixels(encoded)
    assert pixels.shape == (24, 16, 3)
    np.testing.assert_array_equal(pixels, np.asarray(decode_image(encoded)))


def test_damaged_exif_costs_no_image() -> None:
    pixels = noise(6, 4)
    encoded = encode(Image.fromarray(pixels), "PNG", exif=b"Exif\x00\x00XX\x00\x00\x00\x00")
    np.testing.assert_array_equal(np.asarray(decode_image(encoded)), pixels)


JPEGS: dict[str, bytes] = {
    **{
        f"subsampling {sub}, {'progressive' if progressive else 'baseline'}": encode(
            photo(61, 43), "JPEG", subsampling=sub, progressive=progressive, quality=85
        )
        for sub in (0, 1, 2)
        for progressive in (False, True)
    },
    "grey": encode(photo(61, 43).convert("L"), "JPEG"),
    "RGB within": encode(photo(61, 43), "JPEG", keep_rgb=True),
    "restart markers": encode(photo(61, 43), "JPEG", restart_marker_blocks=2),
    "bytes after the end": encode(photo(61, 43), "JPEG") + b"more",
    "one pixel": encode(photo(1, 1), "JPEG"),
}


@pytest.mark.parametrize("name", JPEGS)
def test_the_fast_decoder_gives_pillows_pixels(name: str) -> None:
    pixels = decode_jpeg(JPEGS[name])
    assert pixels is not None
    np.testing.assert_array_equal(pixels, np.asarray(decode_image(JPEGS[name])))


UNCOMMON: dict[str, bytes] = {
    "CMYK": encode(photo(20, 14).convert("CMYK"), "JPEG"),
    "png": encode(photo(20, 14)),
    "palette png": encode(photo(20, 14).convert("P")),
    "webp": encode(photo(20, 14), "WEBP"),
}


@pytest.mark.parametrize("name", UNCOMMON)
def test_other_images_are_left_to_pillow(name: str) -> None:
    assert not is_plain_jpeg(judge(UNCOMMON[name]))
    assert decode_jpeg(UNCOMMON[name]) is None
    np.testing.assert_array_equal(decode_pixels(UNCOMMON[name]), np.asarray(decode_image(UNCOMMON[name])))


@pytest.mark.parametrize(
    "encoded", [b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xe0\x00"]
)
def test_no_more_than_the_first_bytes_are_refused(encoded: bytes) -> None:
    with pytest.raises(ImageRefused, match=r"corrupt image|unsupported image format"):
        decode_pixels(encoded)


def damaged(encoded: bytes, seed: int) -> bytes:
    """Cut short, changed, or with bytes missing or too many."""
    rng = random.Random(seed)
    place, content = rng.randrange(len(encoded)), bytearray(encoded)
    match rng.randrange(4):
        case 0:
            del content[place:]
        case 1:
            del content[place : place + rng.randrange(1, 30)]
        case 2:
            content[place:place] = rng.randbytes(rng.randrange(1, 30))
        case _:
            content[place] = rng.randrange(256)
    return bytes(content)


def test_pillow_decides_which_damaged_jpegs_are_lost() -> None:
    outcomes = {"kept": 0, "lost": 0, "fast": 0}
    for seed in range(600):
        encoded = damaged(JPEGS["subsampling 2, baseline"], seed)
        outcomes["fast"] += decode_jpeg(encoded) is not None
        try:
            wanted = np.asarray(decode_image(encoded))
        except ValueError:
            outcomes["lost"] += 1
            with pytest.raises(ImageRefused):
                decode_pixels(encoded)
        else:
            outcomes["kept"] += 1
            np.testing.assert_array_equal(decode_pixels(encoded), wanted)
    assert min(outcomes.values()) > 30


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("width", "height"), [(256, 192), (101, 67)])
def test_a_reduced_jpeg_shows_the_same_smaller(width: int, height: int, reduction: int) -> None:
    """Against the mean of each block of pixels, on an image as smooth as it is when it is much larger."""
    image = Image.fromarray(noise(9, 7)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = decode_jpeg(encode(image, "JPEG", quality=95, subsampling=0), reduction)
    assert pixels is not None
    assert pixels.shape == (-(-height // reduction), -(-width // reduction), 3)
    means = np.asarray(image.reduce(reduction)).astype(int)
    assert np.abs(pixels - means).mean() < 3.0
    assert np.abs(pixels - means[:, ::-1]).mean() > 20.0
