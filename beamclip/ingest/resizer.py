"""img2dataset's resizer, fed with the pixels that training would see in the same file."""

import io
from typing import Any

from beamclip.data.decode import judged, pixels_of
from beamclip.data.image_limits import EncodedImage, refusal_reason


class UprightResizer:
    """img2dataset's resizer behind our own decoder.

    OpenCV, with which it decodes, ignores rotation, clips samples of more than eight bits at 255, and decodes
    bombs. So it is given plain pixels (a binary PPM, which OpenCV copies), whatever the file was: ingest
    stores what training would decode from the original, and refuses what training would refuse.
    """

    def __init__(self, resizer: Any) -> None:
        self._resizer = resizer

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: None = None) -> tuple[Any, ...]:
        """Resize one image file.

        Returns:
            Encoded image, width, height, original width, original height and None; for an image that failed,
            None five times, and one of REFUSALS or the text of img2dataset's error.
        """
        try:
            with judged(img_stream.getvalue()) as image:
                result: tuple[Any, ...] = self._resizer(io.BytesIO(_plain(image)), blurring_bbox_list)
        except Exception as error:  # a lack of memory too is this image's problem, not its shard's
            return None, None, None, None, None, refusal_reason(error)
        return result


def _plain(image: EncodedImage) -> bytes:
    """Return a file that OpenCV decodes to the pixels that training sees."""
    # For a WebP without alpha and metadata, OpenCV's pixels are the same, in four fifths of the time.
    if image.format == "WEBP" and image.content[12:16] == b"VP8 ":
        return image.content
    pixels = pixels_of(image)
    return b"".join([b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0]), pixels.data])
