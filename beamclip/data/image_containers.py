"""Headers of TIFF (and EXIF, which is TIFF), AVIF and JPEG 2000: files that say where their parts lie.

The places and sizes in such a file may be wrong, by mistake or on purpose. This module refuses what
decoders would trust: false sizes, values of many tags in the same bytes, tables of millions of parts.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from beamclip.data.image_limits import (
    CORRUPT_IMAGE,
    MAX_PIXELS,
    TOO_LARGE,
    TOO_MANY_PARTS,
    UNKNOWN_RANGE,
    UNSUPPORTED_COLOURS,
    EncodedImage,
    ImageRefused,
    check_parts,
    check_size,
)

_BYTE_ORDER = {b"II*\0": "<", b"MM\0*": ">"}
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""TIFF's type of a value -> its size in bytes."""
_ORIENTATION = 274
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 256, 257, 258, 262, 339
_OFFSETS, _TILE_WIDTH, _TILE_HEIGHT = (273, 324), 322, 323
_PIXEL_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326)}
    | {332, 338, 339, 347, *range(512, 522), *range(529, 533)}
)
"""TIFF tags that its pixels need, which excludes text, profiles, EXIF and further directories."""

_SPATIAL_EXTENTS, _TIFF = re.compile(b"ispe"), re.compile(rb"II\*\0|MM\0\*")

_MAX_TILES, _MAX_LAYERS, _MIN_PRECINCT = 1024, 64, 5
"""Limits of a JPEG 2000: decoders keep some kB a tile, and visit all packets of all layers. A precinct, whose
limit is the power of two of its side, costs as much as a hundred pixels."""


@dataclass(frozen=True)
class _Tag:
    """An entry of a TIFF directory."""

    type: int
    count: int
    raw: bytes
    """The entry's 12 bytes, as stored."""

    @property
    def size(self) -> int:
        """Size of the tag's values, bytes."""
        return self.count * _VALUE_BYTES[self.type]

    def first(self, data: bytes, order: str) -> int:
        """Read the tag's first value, an integer."""
        code = {1: "B", 3: "H", 4: "I"}.get(self.type)
        if code is None or self.count < 1:
            raise ImageRefused(CORRUPT_IMAGE, f"TIFF tag of type {self.type}")
        if self.size <= 4:
            return int(struct.unpack_from(order + code, self.raw, 8)[0])
        return int(struct.unpack_from(order + code, data, struct.unpack_from(order + "I", self.raw, 8)[0])[0])


def _directory(data: bytes, start: int = 0) -> dict[int, _Tag]:
    """Read the first directory of a TIFF that begins at `start`.

    Raises:
        ImageRefused: the values take more room than the data have, so they share bytes.
        struct.error: the directory reaches beyond the data.
    """
    order = _BYTE_ORDER[data[start : start + 4]]
    place = start + struct.unpack_from(order + "I", data, start + 4)[0]
    tags = {}
    for index in range(struct.unpack_from(order + "H", data, place)[0]):
        at = place + 2 + 12 * index
        number, kind, count = struct.unpack_from(order + "HHI", data, at)
        if kind in _VALUE_BYTES:
            tags[number] = _Tag(kind, count, data[at : at + 12])
    if sum(tag.size for tag in tags.values()) > len(data):
        raise ImageRefused(CORRUPT_IMAGE, "the values of TIFF tags overlap")
    return tags


def exif_orientation(exif: bytes) -> int:
    """Return EXIF's orientation, 1 to 8; 0 if it is missing or damaged, which is no reason to refuse."""
    if exif[:4] not in _BYTE_ORDER:
        return 0
    try:
        tag = _directory(exif).get(_ORIENTATION)
        orientation = tag.first(exif, _BYTE_ORDER[exif[:4]]) if tag else 0
    except (ImageRefused, struct.error):
        return 0
    return orientation if orientation in range(1, 9) else 0


def judge_tiff(encoded: bytes) -> EncodedImage:
    """Judge the first picture of a TIFF; see `image_headers.judge`."""
    order, tags = _BYTE_ORDER[encoded[:4]], _directory(encoded)

    def value(number: int, default: int) -> int:
        return tags[number].first(encoded, order) if number in tags else default

    check_parts(max((tags[number].count for number in _OFFSETS if number in tags), default=0))
    if value(_TILE_WIDTH, 1) * value(_TILE_HEIGHT, 1) > MAX_PIXELS:
        raise ImageRefused(TOO_LARGE, "a tile of the TIFF")
    depth = value(_BITS, 1)
    if value(_PHOTOMETRIC, 1) == 0 and depth > 8:
        raise ImageRefused(UNSUPPORTED_COLOURS, "white is zero, in more than eight bits")
    if value(_SAMPLE_FORMAT, 1) == 2 and depth == 8:
        raise ImageRefused(UNKNOWN_RANGE, "signed bytes")
    kept = sorted(tags.keys() & _PIXEL_TAGS)
    directory = b"".join(
        [struct.pack(order + "H", len(kept)), *(tags[number].raw for number in kept), bytes(4)]
    )
    # At an even offset, as TIFF demands.
    body = encoded[8:] + bytes(len(encoded) % 2)
    content = encoded[:4] + struct.pack(order + "I", 8 + len(body)) + body + directory
    turn = value(_ORIENTATION, 1)
    return EncodedImage(
        "TIFF", value(_WIDTH, 0), value(_HEIGHT, 0), content, turn if turn in range(1, 9) else 1, depth
    )


def judge_avif(encoded: bytes) -> EncodedImage:
    """Judge an AVIF, sized as the largest picture that it declares; see `image_headers.judge`."""
    sizes = [
        struct.unpack_from(">II", encoded, start + 8)
        for name, start, end in _boxes(encoded, 0, len(encoded))
        if name == b"meta"
        for start in (found.start() for found in _SPATIAL_EXTENTS.finditer(encoded, start, end))
    ]
    if not sizes:
        raise ImageRefused(CORRUPT_IMAGE, "AVIF without a size")
    for width, height in sizes:
        check_size(width, height)
    # Pillow reads all of EXIF when it opens a file.
    for found in _TIFF.finditer(encoded):
        try:
            _directory(encoded, found.start())
        except struct.error:
            continue
    width, height = max(sizes, key=lambda size: int(size[0] * size[1]))
    return EncodedImage("AVIF", width, height, encoded)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the content and end of each box of an ISO base media file, or of a JPEG 2000."""
    count = 0
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = end if size == 0 else start + size
        if size != 0 and size < head:
            raise ImageRefused(CORRUPT_IMAGE, f"box {name!r} of {size} bytes")
        yield name, start + head, min(stop, end)
        start, count = stop, count + 1
        check_parts(count)


def judge_jpeg2000(encoded: bytes) -> EncodedImage:
    """Judge a JPEG 2000 file or bare codestream; see `image_headers.judge`."""
    start = 0
    if not encoded.startswith(b"\xff\x4f"):
        start = next(
            (at for name, at, _ in _boxes(encoded, 0, len(encoded)) if name == b"jp2c"), len(encoded)
        )
    right, lower, left, upper, *tile = struct.unpack_from(">8I", encoded, start + 8)
    if min(tile[:2]) < 1:
        raise ImageRefused(CORRUPT_IMAGE, "JPEG 2000 with empty tiles")
    image = EncodedImage("JPEG2000", right - left, lower - upper, encoded)
    if -(-right // tile[0]) * -(-lower // tile[1]) > _MAX_TILES:
        raise ImageRefused(TOO_MANY_PARTS, f"the limit is {_MAX_TILES} tiles")
    for marker, segment in _codestream_segments(encoded, start + 2):
        if marker == 0x52:
            _check_coding(segment[0], segment[5:])
            if struct.unpack_from(">H", segment, 2)[0] > _MAX_LAYERS:
                raise ImageRefused(TOO_MANY_PARTS, f"the limit is {_MAX_LAYERS} layers")
        elif marker == 0x53:
            # The coding of one component, whose number takes a byte: there are no more than four.
            _check_coding(segment[1], segment[2:])
    return image


def _check_coding(style: int, coding: bytes) -> None:
    """Refuse precincts that are too small.

    Args:
        coding: the segment from the number of decomposition levels on.
    """
    precincts = coding[5 : 6 + coding[0]] if style & 1 else b""
    if any(min(each & 15, each >> 4) < _MIN_PRECINCT for each in precincts):
        raise ImageRefused(TOO_MANY_PARTS, f"precincts of less than {2**_MIN_PRECINCT} pixels")


def _codestream_segments(data: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    """Second byte and content of the markers in the main header and in the headers of all tile-parts."""
    tile_part_end, count = len(data), 0
    while place + 4 <= len(data):
        prefix, marker, size = struct.unpack_from(">BBH", data, place)
        if prefix != 0xFF:
            return
        if marker == 0x93:  # the tile-part's data follow
            place = tile_part_end
            continue
        if marker == 0x90:
            length = struct.unpack_from(">I", data, place + 6)[0]
            tile_part_end = place + max(length, 14) if length else len(data)
        yield marker, data[place + 4 : place + 2 + size]
        place, count = place + 2 + max(size, 2), count + 1
        check_parts(count)
