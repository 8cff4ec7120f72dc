"""Limits on encoded pictures, which bound the memory and time of decoding, and reasons to refuse one.

The limits are constants, not options: each is far above what pictures for training need, and memory for
decoding is reserved by them (see `decode.judged`).
"""

from dataclasses import dataclass

MAX_PIXELS = 50_000_000
"""Most pixels of a picture, before it is cropped or resized."""

MAX_BYTES = 128 << 20
"""Largest file, bytes; a photograph of 50 million pixels takes some 25 MB as a JPEG."""

MAX_ASPECT_RATIO = 50
"""Longer over shorter side. Resizing the shorter side of a narrow strip makes its longer side huge."""

MAX_SCANS = 32
"""Most scans of a JPEG; each is decoded over the whole picture. Common encoders write 1 to 12."""

MAX_PARTS = 100_000
"""Most segments, chunks, strips or tiles of a file. 50 million pixels in strips of 8 kB are 20,000."""

BYTES_PER_PIXEL = {"JPEG": 12, "PNG": 12, "GIF": 12, "BMP": 12, "JPEG2000": 135}
"""Peak memory of decoding, measured with Pillow 13 for a progressive JPEG of three colours without
subsampling, a PNG with alpha, and a JPEG 2000 in code blocks of 4 x 4."""
OTHER_BYTES_PER_PIXEL = 17
"""Peak memory of decoding any other format, and for a JPEG of four channels; WebP needs the most."""

DECODING_BYTES = 12 * MAX_PIXELS
"""Memory for all pictures that a process decodes at a time, 600 MB. A picture that needs more is refused: a
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
"""Every reason to refuse a picture; summary.json counts by them."""


class ImageRefused(ValueError):
    """A picture that will not be decoded, or cannot be."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """Describe the refusal.

        Args:
            reason: one of REFUSALS.
            detail: what was met, for a person.
        """
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def refusal_reason(error: Exception) -> str:
    """Return the entry of REFUSALS under which an image with this error is counted."""
    return error.reason if isinstance(error, ImageRefused) else CORRUPT_IMAGE


@dataclass(frozen=True)
class EncodedImage:
    """A picture as its header describes it, within the limits."""

    format: str
    """Pillow's name for it, except that an MPO counts as the JPEG that it begins with."""
    width: int
    """Pixels, as stored: before the picture is turned upright."""
    height: int
    content: bytes
    """The file without metadata: text, profiles, EXIF and further pictures are left out where possible, so
    that decoders never see them."""
    orientation: int = 1
    """1 to 8, as EXIF counts: how the stored pixels are turned to stand upright."""
    depth: int = 8
    """Bits of a sample, if the decoded picture does not tell."""
    channels: int = 0
    """Number of channels of a JPEG; 0 for other formats."""

    @property
    def memory(self) -> int:
        """Most bytes that decoding takes."""
        known = {} if self.channels == 4 else BYTES_PER_PIXEL
        per_pixel = known.get(self.format, OTHER_BYTES_PER_PIXEL)
        return self.width * self.height * per_pixel

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.memory > DECODING_BYTES:
            raise ImageRefused(TOO_LARGE, f"{self.format} of {self.width} x {self.height} pixels")


def check_size(width: int, height: int) -> None:
    """Refuse a picture of this size, pixels, if it is beyond the limits.

    Raises:
        ImageRefused: it is empty, too large or too narrow.
    """
    if min(width, height) < 1:
        raise ImageRefused(CORRUPT_IMAGE, f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ImageRefused(TOO_LARGE, f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageRefused(TOO_NARROW, f"{width} x {height} pixels, the limit is {MAX_ASPECT_RATIO} : 1")


def check_parts(count: int) -> None:
    """Refuse a file of more than MAX_PARTS parts.

    Raises:
        ImageRefused: it has more.
    """
    if count > MAX_PARTS:
        raise ImageRefused(TOO_MANY_PARTS, f"the limit is {MAX_PARTS:,}")
