"""The header of an encoded picture, read before anything is decoded: format, size, orientation.

`judge` is the only gate: ingest, training, embedding and evaluation decode only what it lets through, in the
form that it returns. It tells formats by their first bytes, not by names or media types. Other formats (SVG,
HEIC, PDF, EPS, ...) are refused, so that Pillow never starts another program.

Pictures are decoded as a viewer without colour management shows them: the first of several frames, upright
by EXIF or XMP (AVIF: by its own turn), without colour profiles and gamma chunks, as in open_clip and
img2dataset.
"""

import re
import struct
from collections.abc import Iterator

from beamclip.data.image_containers import exif_orientation, judge_avif, judge_jpeg2000, judge_tiff
from beamclip.data.image_limits import (
    CORRUPT_IMAGE,
    MAX_BYTES,
    MAX_SCANS,
    TOO_LARGE,
    TOO_MANY_SCANS,
    UNSUPPORTED_FORMAT,
    EncodedImage,
    ImageRefused,
    check_parts,
)

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_SCAN = b"\xff\xda"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application segments and comments, except JFIF's and Adobe's, which say what the colours are."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_AVIF = re.compile(rb"avi[fs]")
_PNM_FIELD = rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})"
_PNM = {
    b"P4": re.compile(rb"P4" + _PNM_FIELD * 2 + rb"\s"),
    b"P5": re.compile(rb"P5" + _PNM_FIELD * 3 + rb"\s"),
    b"P6": re.compile(rb"P6" + _PNM_FIELD * 3 + rb"\s"),
}


def judge(encoded: bytes) -> EncodedImage:
    """Read the header of a picture, and refuse pictures that must not be decoded.

    Raises:
        ImageRefused: it is damaged, of an unsupported format, or beyond a limit.
    """
    if len(encoded) > MAX_BYTES:
        raise ImageRefused(TOO_LARGE, f"{len(encoded):,} bytes, the limit is {MAX_BYTES:,}")
    try:
        return _read(encoded)
    except (struct.error, IndexError) as error:
        raise ImageRefused(CORRUPT_IMAGE, "it ends within its header") from error


def _read(encoded: bytes) -> EncodedImage:
    if encoded.startswith(b"\xff\xd8\xff"):
        return _jpeg(encoded)
    if encoded.startswith(_PNG):
        return _png(encoded)
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return _webp(encoded)
    if encoded.startswith((b"GIF87a", b"GIF89a")):
        return _gif(encoded)
    if encoded.startswith((b"II*\0", b"MM\0*")):
        return judge_tiff(encoded)
    if encoded[4:8] == b"ftyp" and _AVIF.search(encoded, 8, struct.unpack_from(">I", encoded)[0]):
        return judge_avif(encoded)
    if encoded.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return judge_jpeg2000(encoded)
    if encoded.startswith(b"BM"):
        return _bmp(encoded)
    if encoded[:2] in _PNM:
        return _pnm(encoded)
    raise ImageRefused(UNSUPPORTED_FORMAT, f"it begins with {encoded[:8]!r}")


def _jpeg(encoded: bytes) -> EncodedImage:
    kept, size, orientation, by_xmp, channels = [encoded[:2]], (0, 0), 0, 0, 0
    scan = len(encoded)
    for marker, start, end in _segments(encoded):
        if marker in _FRAMES:
            height, width, channels = struct.unpack_from(">HHB", encoded, start + 5)
            size = (width, height)
        if marker == _SCAN[1]:
            scan = start
            break
        if marker == 0xE1 and encoded.startswith(b"Exif\0\0", start + 4):
            orientation = orientation or exif_orientation(encoded[start + 10 : end])
        elif marker == 0xE1 and (found := _XMP_ORIENTATION.search(encoded, start, end)):
            by_xmp = int(found[1])
        if marker not in _METADATA:
            kept.append(encoded[start:end])
    _check_scans(encoded, scan)
    content = encoded if sum(map(len, kept)) == scan else b"".join([*kept, encoded[scan:]])
    return EncodedImage("JPEG", *size, content, orientation or by_xmp or 1, channels=channels)


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG, up to its first scan."""
    place, count = 2, 0
    while found := _MARKER.search(encoded, place):
        marker, start = found[1][0], found.start(1) - 1
        if marker == 0xD9:
            return
        place = start + 2
        if marker not in _BARE_MARKERS:
            place += struct.unpack_from(">H", encoded, place)[0]
        yield marker, start, place
        count += 1
        check_parts(count)


def _check_scans(encoded: bytes, first: int) -> None:
    # An upper bound: segments may hold these two bytes, and embedded pictures have scans of their own.
    if encoded.count(_SCAN, first) <= MAX_SCANS:
        return
    scans, place = 0, first
    while (found := _MARKER_AFTER_SCAN.search(encoded, place)) and found[1] != b"\xd9":
        scans += found[1] == _SCAN[1:]
        place = found.end() + struct.unpack_from(">H", encoded, found.end())[0]
        if scans > MAX_SCANS:
            raise ImageRefused(TOO_MANY_SCANS, f"the limit is {MAX_SCANS}")


def _png(encoded: bytes) -> EncodedImage:
    kept, place, count, orientation, by_xmp = [_PNG], 8, 0, 0, 0
    while place + 8 <= len(encoded):
        size, name = struct.unpack_from(">I4s", encoded, place)
        end = place + 12 + size
        if name in _PNG_CHUNKS:
            kept.append(encoded[place:end])
        elif name == b"eXIf":
            orientation = orientation or exif_orientation(encoded[place + 8 : end].removeprefix(b"Exif\0\0"))
        elif name == b"iTXt" and (found := _XMP_ORIENTATION.search(encoded, place, end)):
            by_xmp = int(found[1])
        place, count = end, count + 1
        check_parts(count)
        if name == b"IEND":
            break
    name, width, height, depth = struct.unpack_from(">4sIIB", encoded, 12)
    if name != b"IHDR":
        raise ImageRefused(CORRUPT_IMAGE, "PNG without a header")
    return EncodedImage("PNG", width, height, b"".join(kept), orientation or by_xmp or 1, depth)


def _webp(encoded: bytes) -> EncodedImage:
    first = encoded[12:16]
    if first == b"VP8 ":
        width, height = (edge & 0x3FFF for edge in struct.unpack_from("<HH", encoded, 26))
    elif first == b"VP8L":
        bits = struct.unpack_from("<I", encoded, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif first == b"VP8X":
        width, height = (int.from_bytes(encoded[place : place + 3], "little") + 1 for place in (24, 27))
    else:
        raise ImageRefused(CORRUPT_IMAGE, f"WebP that begins with {first!r}")
    orientation, by_xmp, place, count = 0, 0, 12, 0
    while first == b"VP8X" and place + 8 <= len(encoded):
        name, size = struct.unpack_from("<4sI", encoded, place)
        end = place + 8 + size
        if name == b"EXIF":
            orientation = exif_orientation(encoded[place + 8 : end].removeprefix(b"Exif\0\0"))
        elif name == b"XMP " and (found := _XMP_ORIENTATION.search(encoded, place, end)):
            by_xmp = int(found[1])
        place, count = end + size % 2, count + 1
        check_parts(count)
    return EncodedImage("WEBP", width, height, encoded, orientation or by_xmp or 1)


def _gif(encoded: bytes) -> EncodedImage:
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept, control, count = [encoded[:place]], b"", 0
    while encoded[place] == 0x21:
        start, is_control = place, encoded[place + 1] == 0xF9
        place += 2
        while encoded[place]:
            place, count = place + 1 + encoded[place], count + 1
            check_parts(count)
        place += 1
        control = encoded[start:place] if is_control else control
    if encoded[place] != 0x2C:
        raise ImageRefused(CORRUPT_IMAGE, "GIF without a picture")
    left, upper, frame_width, frame_height = struct.unpack_from("<HHHH", encoded, place + 1)
    content = b"".join([*kept, control, encoded[place:]])
    # A frame that reaches beyond the canvas enlarges it.
    return EncodedImage("GIF", max(width, left + frame_width), max(height, upper + frame_height), content)


def _bmp(encoded: bytes) -> EncodedImage:
    header = struct.unpack_from("<I", encoded, 14)[0]
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", encoded, 18)
    return EncodedImage("BMP", abs(width), abs(height), encoded)


def _pnm(encoded: bytes) -> EncodedImage:
    found = _PNM[encoded[:2]].match(encoded)
    if found is None:
        raise ImageRefused(CORRUPT_IMAGE, "damaged header of a portable anymap")
    return EncodedImage("PPM", int(found[1]), int(found[2]), encoded)


def pnm_samples(image: EncodedImage) -> tuple[bytes, int, int]:
    """Return the sample bytes, the number of channels and the largest value of a judged portable anymap."""
    found = _PNM[image.content[:2]].match(image.content)
    assert found is not None, "judge() has matched it"
    largest = 1 if image.content[:2] == b"P4" else int(found[3])
    return image.content[found.end() :], 3 if image.content[:2] == b"P6" else 1, largest
