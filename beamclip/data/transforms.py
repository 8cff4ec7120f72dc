"""Decoding, cropping and augmentation, every random choice a function of (seed, epoch, sample key).

A sample draws its random numbers from a counter-based generator (SplitMix64, Steele et al. 2014,
https://doi.org/10.1145/2660193.2660195) that is seeded by the run's seed, the epoch and the sample's
key. Which worker, thread or batch handles the sample therefore cannot change its augmentation.

The first four numbers of a sample place its crop, where the image is decoded; the next nine drive the
batched augmentation on the training device; the last chooses its caption.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

CROP_DRAWS = 4
AUGMENT_DRAWS = 9
CAPTION_DRAWS = 1
DRAWS = CROP_DRAWS + AUGMENT_DRAWS + CAPTION_DRAWS

_WHITE = (255, 255, 255)
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; evaluation uses none of it."""

    crop_scale_min: float = 0.6
    """Smallest share of the image's area that a random crop keeps, 0..1; 1 keeps the whole image."""
    crop_ratio: float = 4 / 3
    """Largest aspect ratio of a random crop, its inverse the smallest; passed where a crop would not fit."""
    flip: float = 0.0
    """Probability of a horizontal mirror image; leave it at 0 where left and right carry meaning."""
    rotate: float = 10.0
    """Largest rotation, degrees to either side."""
    translate: float = 0.06
    """Largest shift along each axis, as a share of the image's width."""
    zoom: float = 0.1
    """Largest relative change of scale, to either side."""
    jitter: float = 0.3
    """Largest relative change of brightness, contrast and saturation, to either side."""
    grey: float = 0.0
    """Probability of removing all colour."""


def sample_uniforms(seed: int, epoch: int, keys: list[str]) -> NDArray[np.float32]:
    """The random numbers of the samples `keys` in one epoch.

    Returns:
        float32 [len(keys), DRAWS] in [0, 1).
    """
    salt = f"{seed}/{epoch}/".encode()
    digests = b"".join(blake2b(salt + key.encode(), digest_size=8).digest() for key in keys)
    states = np.frombuffer(digests, dtype="<u8").astype(np.uint64)[:, None]
    counters = np.arange(1, DRAWS + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        z = states + counters * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def decode_image(encoded: bytes) -> Image.Image:
    """Decode to RGB, upright, on a white background.

    Raises:
        ValueError: the bytes are no complete image of a format that Pillow knows.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception as error:  # Pillow raises a dozen types, from SyntaxError to DecompressionBombError
        raise ValueError(f"cannot decode the image: {error}") from error
    with contextlib.suppress(Exception):  # damaged EXIF is no reason to lose an image whose pixels are whole
        ImageOps.exif_transpose(image, in_place=True)
    return _on_white(image)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64) / 257.0
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*_WHITE, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def random_crop_box(
    width: int, height: int, draws: Sequence[float], config: AugmentConfig
) -> tuple[float, float, float, float]:
    """Random resized crop (Szegedy et al., arXiv 1409.4842): area, aspect ratio, then the place.

    A crop too wide or too high for the image is as wide or as high as the image and keeps its area, not
    its ratio; torchvision would draw again.

    Args:
        width, height: size of the image, pixels.
        draws: four numbers in [0, 1).

    Returns:
        (left, upper, right, lower), pixels, within the image.
    """
    area = max(1.0, width * height * (config.crop_scale_min + (1.0 - config.crop_scale_min) * draws[0]))
    ratio = math.exp((2.0 * draws[1] - 1.0) * math.log(config.crop_ratio))
    crop_height = min(math.sqrt(area / ratio), height)
    crop_width = min(area / crop_height, width)
    crop_height = min(area / crop_width, height)
    left = (width - crop_width) * draws[2]
    upper = (height - crop_height) * draws[3]
    return (left, upper, left + crop_width, upper + crop_height)


def load_training_image(
    encoded: bytes, draws: NDArray[np.float32], size: int, config: AugmentConfig
) -> NDArray[np.uint8]:
    """Decode, crop at random and resize with antialiasing.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: the image cannot be decoded.
    """
    image = decode_image(encoded)
    box = random_crop_box(image.width, image.height, draws.tolist(), config)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def load_evaluation_image(
    encoded: bytes,
    size: int,
    *,
    resize_mode: str = "shortest",
    interpolation: str = "bicubic",
    fill_color: int = 0,
) -> NDArray[np.uint8]:
    """Decode and bring to size as open_clip's own evaluation transform does, to the last bit.

    Args:
        resize_mode: open_clip's names: `shortest` (then a centre crop), `longest` (then margins), `squash`.
        interpolation: `bilinear`, else bicubic is taken, as open_clip does for `random`.
        fill_color: of the margins, in each channel, 0..255.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: the image cannot be decoded.
    """
    image = decode_image(encoded)
    target = _resized(image.width, image.height, size, resize_mode)
    bilinear = interpolation == "bilinear"
    image = image.resize(target, Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, size), (fill_color,) * 3)
    canvas.paste(image, (_centred(image.width, size), _centred(image.height, size)))
    return np.asarray(canvas)


def _resized(width: int, height: int, size: int, resize_mode: str) -> tuple[int, int]:
    if resize_mode == "squash":
        return size, size
    if resize_mode == "longest":
        ratio = max(width, height) / size
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    # Truncation, not rounding: torchvision's Resize cuts the longer side this way.
    side = min(width, height)
    return int(size * width / side), int(size * height / side)


def _centred(edge: int, size: int) -> int:
    """Where an edge begins on a canvas; an odd pixel goes where open_clip's crop and margin put it."""
    return -round((edge - size) / 2.0) if edge > size else (size - edge) // 2


def augment(pixels: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Batched augmentation on the device of the pixels: mirror, affine, colour.

    Args:
        pixels: uint8 [B, 3, H, W].
        draws: float32 [B, AUGMENT_DRAWS] in [0, 1), the numbers after the crop's.

    Returns:
        uint8 [B, 3, H, W].
    """
    centred = draws * 2.0 - 1.0
    images = pixels.float()
    if config.flip or config.rotate or config.translate or config.zoom:
        images = _affine(images, draws[:, 0] < config.flip, centred[:, 1:5], config)
    if config.jitter or config.grey:
        images = _colour(images, 1.0 + config.jitter * centred[:, 5:8], draws[:, 8] < config.grey)
    return images.round_().clamp_(0, 255).to(torch.uint8)


def _affine(images: Tensor, mirrored: Tensor, centred: Tensor, config: AugmentConfig) -> Tensor:
    angle = torch.deg2rad(config.rotate * centred[:, 0])
    scale = 1.0 / (1.0 + config.zoom * centred[:, 1])
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    sign = 1.0 - 2.0 * mirrored.float()
    shift = 2.0 * config.translate * centred[:, 2:4]
    theta = torch.stack(
        [
            torch.stack([sign * cos, -sin, shift[:, 0]], dim=1),
            torch.stack([sign * sin, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colour(images: Tensor, factors: Tensor, greyed: Tensor) -> Tensor:
    brightness, contrast, saturation = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    luma = images.new_tensor(_LUMA).view(1, 3, 1, 1)
    images = images * brightness
    mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    grey = (images * luma).sum(dim=1, keepdim=True)
    saturation = torch.where(greyed.view(-1, 1, 1, 1), torch.zeros_like(saturation), saturation)
    return grey + saturation * (images - grey)
