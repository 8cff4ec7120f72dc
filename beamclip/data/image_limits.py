"""What an encoded picture may be, so that decoding it takes bounded memory and time, and why one is refused.

The limits are constants, not options: each is far above what pictures for training need, and memory for
what is decoded at a time (see `decode.judged`) is reserved by them.
"""

from dataclasses import dataclass

MAX_PIXELS = 50_000_000
"""Of a picture, before it is cropped or resized."""

MAX_BYTES = 128 << 20
"""Of a file; a photograph of 50 million pixels takes some 25 MB as a JPEG."""

MAX_ASPECT_RATIO = 50
"""Longer over shorter side. Resized by its shorter side, a strip of pixels grows by the longer one."""

MAX_SCANS = 32
"""Of a JPEG, each of which is decoded over the whole picture. Common encoders write 1 to 12."""

MAX_PARTS = 100_000
"""Segments, chunks, strips or tiles of a file. 50 million pixels in rows of 8 kB are 20,000."""

BYTES_PER_PIXEL = {"JPEG": 12, "PNG": 12, "GIF": 12, "BMP": 12, "JPEG2000": 135}
"""Peak memory of decoding, measured with Pillow 13: of a progressive JPEG of three colours without
subsampling, a PNG with alpha, and a JPEG 2000 in code blocks of 4 x 4."""
OTHER_BYTES_PER_PIXEL = 17
"""The same of any other format; WebP needs the most."""

DECODING_BYTES = 12 * MAX_PIXELS
"""Memory for all pictures that a process decodes at a time, 600 MB. One that needs more is too large: a
WebP, AVIF or TIFF of more than 35 million pixels, a JPEG 2000 of more than 4.4 million."""

CORRUPT_IMAGE = "corrupt image"
UNSUPPORTED_FORMAT = "unsupported image format"
UNSUPPORTED_COLOURS = "unsupported image colours"
UNKNOWN_RANGE = "image values of unknown range"
TOO_LARGE = "image too large"
TOO_NARROW = "image too narrow"
TOO_MANY_SCANS = "image of too many scans"
TOO_MANY_PARTS = "image of too many parts"

REFUSALS = (
    CORRUPT_IMAGE,
    UNSUPPORTED_FORMAT,
    UNSUPPORTED_COLOURS,
    UNKNOWN_RANGE,
    TOO_LARGE,
    TOO_NARROW,
    TOO_MANY_SCANS,
    TOO_MANY_PARTS,
)
"""Every reason for which a picture is refused; counts in summary.json go by them."""


class ImageRefused(ValueError):
    """A picture that will not be decoded, or cannot be."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """
        Args:
            reason: one of REFUSALS.
            detail: what was met, for a person.
        """
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def refusal_reason(error: Exception) -> str:
    """By which of REFUSALS an image is counted that could not be decoded."""
    return error.reason if isinstance(error, ImageRefused) else CORRUPT_IMAGE


@dataclass(frozen=True)
class EncodedImage:
    """A picture as its header describes it, within the limits."""

    format: str
    """Pillow's name of it, except MPO, which is taken for the JPEG that it begins with."""
    width: int
    """Pixels, as stored: before the picture is turned upright."""
    height: int
    content: bytes
    """The file, less metadata: decoders never see text, profiles, EXIF or further pictures where they could
    be left out."""
    orientation: int = 1
    """1 to 8, as EXIF counts: how the stored pixels are turned to stand upright."""
    depth: int = 8
    """Bits of a sample, where it is not known from the decoded picture."""
    channels: int = 0
    """Of a JPEG; 0 for others."""

    @property
    def memory(self) -> int:
        """Bytes that decoding takes, at most."""
        known = {} if self.channels == 4 else BYTES_PER_PIXEL
        per_pixel = known.get(self.format, OTHER_BYTES_PER_PIXEL)
        return self.width * self.height * per_pixel

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.memory > DECODING_BYTES:
            raise ImageRefused(TOO_LARGE, f"{self.format} of {self.width} x {self.height} pixels")


def check_size(width: int, height: int) -> None:
    """
    Raises:
        ImageRefused: a picture of so many pixels is not decoded.
    """
    if min(width, height) < 1:
        raise ImageRefused(CORRUPT_IMAGE, f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageRefused(TOO_LARGE, f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageRefused(TOO_NARROW, f"{width} x {height} pixels, the limit is {MAX_ASPECT_RATIO} : 1")


def check_parts(count: int) -> None:
    """
    Raises:
        ImageRefused: a file of so many parts is not decoded.
    """
    if count > MAX_PARTS:
        raise ImageRefused(TOO_MANY_PARTS, f"the limit is {MAX_PARTS:,}")
