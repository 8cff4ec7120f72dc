"""The code that MLflow serves: its pixels are those of evaluation, for every kind of picture."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from beamclip.data.image_limits import MAX_ASPECT_RATIO, MAX_PIXELS
from beamclip.export.mlflow_code import FORMATS, MOST_PIXELS, MOST_RATIO, PictureClassifier
from beamclip.export.mlflow_model import SERVED_FORMATS
from beamclip.export.pictures import fitted_picture
from beamclip.models.clip import LoadedClip


def picture(width: int = 50, height: int = 71, channels: int = 3) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (9, 7, channels), np.uint8)
    return Image.fromarray(noise.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=exif, quality=95)


def png(depth: int, key: tuple[int, ...]) -> bytes:
    """A PNG of 48 x 60 pixels, grey or in colours as its transparent key is, as Pillow writes none."""
    rows = np.random.default_rng(depth).integers(0, 256, (60, 48 * len(key) * depth // 8), np.uint8)
    rows[:20] = 0
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 48, 60, depth, 0 if len(key) == 1 else 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": struct.pack(f">{len(key)}H", *key), b"IDAT": zlib.compress(content)}
    written = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in {**chunks, b"IEND": b""}.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


KINDS = {
    "turned-6": turned(6),
    "turned-7": turned(7),
    "RGBA": encoded(picture(channels=4)),
    "RGBA-webp": encoded(picture(channels=4), "WEBP", lossless=True),
    "LA": encoded(picture(channels=4).convert("LA")),
    "palette": encoded(picture().quantize(16), transparency=3),
    "gif": encoded(picture().quantize(16), "GIF", transparency=3),
    "key": encoded(picture().quantize(4).convert("RGB"), transparency=(0, 0, 0)),
    "16-bit": png(16, (1,)),
    "16-bit-key": png(16, (0,)),
    "16-bit-colours": png(16, (0, 0, 0)),
    "2-bit-key": png(2, (2,)),
    "CMYK": encoded(picture().convert("CMYK"), "JPEG", quality=95),
    "wide": encoded(picture(301, 33)),
    "tall": encoded(picture(31, 211)),
    "small": encoded(picture(5, 9)),
}


def served_by(clip: LoadedClip) -> PictureClassifier:
    served = PictureClassifier()
    served.preprocessing = {**clip.preprocess_cfg, "size": clip.image_size}
    return served


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_those_of_evaluation(kind: str, mode: str, student: LoadedClip) -> None:
    cfg = {**student.preprocess_cfg, "resize_mode": mode, "fill_color": 7}
    clip = replace(student, preprocess_cfg=cfg)
    found = served_by(clip).pixels(KINDS[kind])
    np.testing.assert_array_equal(found.transpose(1, 2, 0), fitted_picture(KINDS[kind], clip))


def test_a_narrow_strip_is_refused_before_it_is_resized(student: LoadedClip) -> None:
    strip = encoded(Image.new("1", (1, 100_000)))
    assert len(strip) < 1000
    with pytest.raises(MlflowException, match=r"cannot be read as a picture \(1 x 100000 pixels") as caught:
        served_by(student).pixels(strip)
    assert caught.value.get_http_status_code() == 400


def test_a_format_that_evaluation_may_see_otherwise_is_refused(student: LoadedClip) -> None:
    with pytest.raises(MlflowException, match="no known format"):
        served_by(student).pixels(encoded(Image.new("F", (8, 8)), "TIFF"))


def test_its_limits_are_those_of_training() -> None:
    # The file stands alone in the model and cannot import them.
    assert (MOST_PIXELS, MOST_RATIO) == (MAX_PIXELS, MAX_ASPECT_RATIO)
    assert FORMATS == SERVED_FORMATS
