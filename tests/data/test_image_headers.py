"""What is refused before it is decoded and why; what hostile metadata do; orientation."""

import contextlib
import io
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, noise, photo
from PIL import Image

from beamclip.data.decode import decode_image, decode_pixels, judged
from beamclip.data.image_headers import judge
from beamclip.data.image_limits import (
    DECODING_BYTES,
    MAX_ASPECT_RATIO,
    MAX_PIXELS,
    MAX_SCANS,
    REFUSALS,
    ImageRefused,
)
from beamclip.data.transforms import load_evaluation_image
from beamclip.ingest.resizer import UprightResizer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from support.image_bombs import (
    chunk,
    jpeg_of_scans,
    patched,
    png,
    refused,
    small,
    survived,
    tiff,
    webp,
)

REFUSED, SURVIVED = refused(edge=64), survived(edge=64)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_by_its_reason(name: str) -> None:
    data, reason = REFUSED[name]
    for decode in (decode_image, decode_pixels):
        with pytest.raises(ImageRefused, match=f"^{reason}") as refusal:
            decode(data)
        assert refusal.value.reason == reason
    assert reason in REFUSALS


def memory(line: str) -> int:
    """VmRSS, resident memory, or VmHWM, the most of it since it was reset, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(each.split()[1]) * 1024 for each in status if each.startswith(line))


@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")
def test_neither_bombs_nor_hostile_metadata_take_memory() -> None:
    files = [data for data, _ in REFUSED.values()] + list(SURVIVED.values())
    decode_pixels(files[-1])
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for data in files:
        with contextlib.suppress(ImageRefused):
            decode_pixels(data)
        with contextlib.suppress(ImageRefused):
            load_evaluation_image(data, 224)
    assert memory("VmHWM") - before < 80_000_000


@pytest.mark.parametrize("name", REFUSED)
def test_ingest_refuses_what_training_refuses_and_says_the_same(name: str) -> None:
    data, reason = REFUSED[name]
    # No image comes as far as img2dataset's own resizer.
    assert UprightResizer(None)(io.BytesIO(data)) == (None, None, None, None, None, reason)


@pytest.mark.parametrize("name", SURVIVED)
def test_metadata_that_would_take_gigabytes_are_left_out_and_the_picture_decodes(name: str) -> None:
    assert decode_image(SURVIVED[name]).size in [(8, 8), (53, 53), (64, 64)]


def test_pictures_up_to_the_limits_pass() -> None:
    edge = int(MAX_PIXELS**0.5)
    plain = png(8, 8)
    assert judge(patched(plain, 16, ">II", edge, edge)).width == edge
    for data in (patched(plain, 16, ">II", edge + 2, edge), webp(edge, edge)):
        with pytest.raises(ImageRefused, match="image too large"):
            judge(data)
    assert judge(png(MAX_ASPECT_RATIO, 1)).width == MAX_ASPECT_RATIO
    with pytest.raises(ImageRefused, match="image too narrow"):
        judge(png(1, MAX_ASPECT_RATIO + 1))
    assert judge(jpeg_of_scans(MAX_SCANS - 9, 16)).format == "JPEG"  # ten by Pillow, the last one again


def test_scans_of_a_thumbnail_do_not_count() -> None:
    inner = jpeg_of_scans(300, 16)
    outer = encode(photo(24, 16), "JPEG")
    thumbnail = b"\xff\xe5" + (len(inner[:60_000]) + 2).to_bytes(2, "big") + inner[:60_000]
    decoded = decode_pixels(outer[:2] + thumbnail + outer[2:] + inner)
    np.testing.assert_array_equal(decoded, decode_pixels(outer))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_every_cut_of_a_file_is_refused_and_never_another_error(kind: str) -> None:
    data = encode(photo(24, 16), kind)
    refusals = 0
    for length in {*range(0, min(len(data), 120)), *range(0, len(data), 37)}:
        try:
            decode_pixels(data[:length])
        except ImageRefused:
            refusals += 1
    assert refusals > 3


def turned(kind: str) -> bytes:
    """Stored 6 x 4 (AVIF: 60 x 40), to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(6, 4)).resize((60, 40), Image.Resampling.NEAREST)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    return encode(image, kind, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_orientation_is_heeded_in_every_container(kind: str) -> None:
    wanted = np.rot90(np.asarray(Image.fromarray(noise(6, 4)).resize((60, 40), Image.Resampling.NEAREST)), -1)
    found = decode_pixels(turned(kind)).astype(int)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < (0.5 if kind in ("PNG", "WEBP", "TIFF") else 40)
    assert np.abs(found - np.rot90(wanted, 2)).mean() > 60


def test_orientation_in_big_endian_exif_and_after_the_pixels_of_a_png() -> None:
    pixels = noise(6, 4)
    big_endian = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = encode(Image.fromarray(pixels))
    late = data[:-12] + chunk(b"eXIf", big_endian) + data[-12:]
    np.testing.assert_array_equal(decode_pixels(late), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", tiff({n: (1, 90_000, 8) for n in range(1, 999)})]
)
def test_damaged_exif_turns_nothing(exif: bytes) -> None:
    assert decode_pixels(png(16, 8, [chunk(b"eXIf", exif)])).shape == (8, 16, 3)


def test_a_jpeg_2000_whose_box_and_pixels_differ_in_size_is_refused() -> None:
    data = small("JPEG2000", edge=64)
    for edge in (16, 256):
        with pytest.raises(ImageRefused):
            decode_pixels(patched(data, data.index(b"ihdr") + 4, ">II", edge, edge))


def test_threads_share_the_memory_for_decoding() -> None:
    """Twelve pictures at once, of which two together ask for more than there is."""
    data = webp(5000, 5000)
    held, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal held, most
        with judged(data) as image:
            with lock:
                held += image.memory
                most = max(most, held)
            time.sleep(0.01)
            with lock:
                held -= image.memory

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert held == 0
    assert DECODING_BYTES / 2 < most <= DECODING_BYTES
