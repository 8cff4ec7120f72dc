"""Build small files, byte by byte, that would take gigabytes or minutes to decode.

`refused()` gives the reason for which each must be refused. `survived()` gives images within the limits that
have hostile metadata beside the pixels, or are as costly as an image may be.
"""

import io
import struct
import zlib
from typing import Any

from PIL import Image

SIZE = 20_000


def refused(edge: int = 6000) -> dict[str, tuple[bytes, str]]:
    """Return files by name, each with the reason for which it must be refused.

    Args:
        edge: side of the JPEG with many scans, pixels.
    """
    too_large, narrow = "image too large", "image too narrow"
    scans, parts = "image of too many scans", "image of too many parts"
    unsupported, corrupt = "unsupported image format", "corrupt image"
    jp2 = small("JPEG2000")
    return {
        "line.png": (png(SIZE, 1), narrow),
        "large.png": (png(SIZE, SIZE), too_large),
        "large.webp": (webp(16_383, 16_383), too_large),
        "line.webp": (webp(16_383, 1), narrow),
        "large.gif": (
            small("GIF").replace(struct.pack("<HH", 8, 8), struct.pack("<HH", SIZE, SIZE)),
            too_large,
        ),
        "large.jpg": (resized_jpeg(small("JPEG"), SIZE, SIZE), too_large),
        "scans.jpg": (jpeg_of_scans(300, edge), scans),
        "large.bmp": (patched(small("BMP"), 18, "<ii", SIZE, -SIZE), too_large),
        "large.pgm": (b"P5 %d %d 255\n" % (SIZE, SIZE), too_large),
        "large.tif": (tiff({256: SIZE, 257: SIZE}), too_large),
        "tags.tif": (tiff({number: (1, 50_000, 8) for number in range(40_000, 60_000)}), corrupt),
        "strips.tif": (tiff({273: (4, 1_000_000, 8), 279: (4, 1_000_000, 8)}, room=9_000_000), parts),
        "tile.tif": (tiff({322: 100_000, 323: 100_000, 324: 8, 325: 64}), too_large),
        "large.avif": (resized_avif(small("AVIF"), SIZE, SIZE), too_large),
        "large.jp2": (patched(jp2, jp2.index(b"\xff\x4f\xff\x51") + 8, ">II", SIZE, SIZE), too_large),
        "tiles.jp2": (patched(jp2, jp2.index(b"\xff\x4f\xff\x51") + 24, ">II", 0, 1), corrupt),
        "many_tiles.jp2": (small("JPEG2000", edge=200, tile_size=(4, 4)), parts),
        "precincts.jp2": (
            small("JPEG2000", edge=200, precinct_size=(8, 8), codeblock_size=(4, 4), num_resolutions=2),
            parts,
        ),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", unsupported),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', unsupported),
        "page.html": (b"<!doctype html><title>404</title>", unsupported),
    }


def survived(edge: int = 7000) -> dict[str, bytes]:
    """Return files by name that must be decoded: of 8 x 8 pixels, or of up to `edge` x `edge` (largest)."""
    text = zlib.compress(bytes(1_000_000), 9)
    beyond = chunk(b"IDAT", zlib.compress(bytes(100_000_000), 9))
    return {
        "beyond.png": png(8, 8)[:33] + beyond + chunk(b"IEND", b""),
        "texts.png": png(8, 8, [chunk(b"zTXt", b"k\0\0" + text)] * 100 + [chunk(b"iCCP", b"k\0\0" + text)]),
        "exif.png": png(8, 8, [chunk(b"eXIf", tiff({n: (1, 90_000, 8) for n in range(1, 9000)}))]),
        "comments.gif": with_comments(small("GIF"), 20_000),
        "largest.png": png(edge, edge),
        "largest.webp": webp(edge * 5 // 6, edge * 5 // 6),
        "largest.jpg": jpeg_of_scans(1, edge),
    }


def small(kind: str, edge: int = 8, **options: Any) -> bytes:
    """Return a file of a picture in one colour, `edge` pixels square."""
    out = io.BytesIO()
    Image.new("RGB", (edge, edge), (10, 200, 30)).save(out, kind, **options)
    return out.getvalue()


def patched(data: bytes, place: int, layout: str, *values: int) -> bytes:
    """Return the bytes with numbers packed over them at a place, by a layout of `struct`."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, place, *values)
    return bytes(changed)


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file, with length and checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, metadata: list[bytes] | None = None) -> bytes:
    """Return a black PNG in one-bit grey, with these chunks of metadata before the pixels."""
    rows = zlib.compressobj(9)
    pixels = b"".join([rows.compress(bytes((width + 7) // 8 + 1)) for _ in range(height)]) + rows.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    parts = [header, *(metadata or []), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp(width: int, height: int) -> bytes:
    """Return a lossless WebP in one colour: it takes no bits per pixel, so 38 bytes, whatever the size."""
    data = small("WEBP", edge=1, lossless=True)
    bits = struct.unpack_from("<I", data, 21)[0] >> 28 << 28
    return patched(data, 21, "<I", bits | (width - 1) | (height - 1) << 14)


def resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG with another size in its header."""
    frame = next(place for place in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if place >= 0)
    return patched(data, frame + 5, ">HH", height, width)


def jpeg_of_scans(scans: int, edge: int) -> bytes:
    """Return a progressive JPEG whose last scan is there `scans` times."""
    data = small("JPEG", edge=edge, progressive=True, quality=50)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - 1) + data[-2:]


def resized_avif(data: bytes, width: int, height: int) -> bytes:
    """Return an AVIF with another size in its container."""
    return patched(data, data.index(b"ispe") + 8, ">II", width, height)


def tiff(tags: dict[int, int | tuple[int, int, int]], room: int = 64) -> bytes:
    """Return a grey TIFF of 8 x 8 pixels with these tags; a value is a number, or type, count and offset."""
    plain: dict[int, int | tuple[int, int, int]] = {
        256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64,
    }  # fmt: skip
    entries = [
        struct.pack("<HHII", number, *(tag if isinstance(tag, tuple) else (4, 1, tag)))
        for number, tag in sorted({**plain, **tags}.items())
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + room) + bytes(room) + directory


def with_comments(data: bytes, blocks: int) -> bytes:
    """Return a GIF with a comment of many blocks before its picture."""
    start = 13 + (3 << (data[10] & 7) + 1)
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * blocks + b"\0"
    return b"GIF89a" + data[6:start] + comment + data[start:]
