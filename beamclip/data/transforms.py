"""Cropping and augmentation; every random choice is a function of (seed, epoch, sample key).

A sample draws its random numbers from a counter-based generator (SplitMix64, Steele et al. 2014,
https://doi.org/10.1145/2660193.2660195) that is seeded by the run's seed, the epoch and the sample's
key. Which worker, thread or batch handles the sample therefore cannot change its augmentation.

The first four numbers of a sample place its crop, where the image is decoded; the next eleven drive the
batched augmentation on the training device; the last chooses its caption.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beamclip.data.config import Augmentation
from beamclip.data.decode import REDUCTIONS, is_plain_jpeg, jpeg_pixels, judged, picture_of, pixels_of
from beamclip.data.image_limits import EncodedImage

CROP_DRAWS = 4
AUGMENT_DRAWS = 11
CAPTION_DRAWS = 1
DRAWS = CROP_DRAWS + AUGMENT_DRAWS + CAPTION_DRAWS

REDUCTION_MARGIN = 1.5
"""A JPEG is decoded at a smaller scale as long as the crop keeps this many times the wanted size. At 1.0, a
teacher's features move three times as far (see docs/benchmarks/decode.json)."""

_LUMA = (0.299, 0.587, 0.114)


def sample_uniforms(seed: int, epoch: int, keys: list[str]) -> NDArray[np.float32]:
    """Draw the random numbers of the samples `keys` in one epoch.

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


def random_crop_box(
    width: int, height: int, draws: Sequence[float], config: Augmentation
) -> tuple[int, int, int, int]:
    """Place a random resized crop (Szegedy et al., arXiv 1409.4842): area, aspect ratio, position.

    A crop too wide or too high for the image is as wide or as high as the image and keeps its area, not
    its ratio; torchvision would draw again.

    Args:
        width, height: size of the image, pixels.
        draws: four numbers in [0, 1).

    Returns:
        (left, upper, right, lower), pixels, within the image. The sides are rounded to whole pixels; all
        positions are equally likely.
    """
    area = width * height * (config.crop_scale_min + (1.0 - config.crop_scale_min) * draws[0])
    ratio = math.exp((2.0 * draws[1] - 1.0) * math.log(config.crop_ratio))
    crop_height = min(math.sqrt(area / ratio), height)
    crop_width = max(1, round(min(area / max(crop_height, 1.0), width)))
    crop_height = max(1, round(min(area / crop_width, height)))
    left = int((width - crop_width + 1) * draws[2])
    upper = int((height - crop_height + 1) * draws[3])
    return left, upper, left + crop_width, upper + crop_height


def load_training_image(
    encoded: bytes, draws: NDArray[np.float32], size: int, config: Augmentation
) -> NDArray[np.uint8]:
    """Decode, crop at random and resize with antialiasing.

    Args:
        draws: float32 [CROP_DRAWS] or more, the first of a sample's numbers.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ImageRefused: the image cannot be decoded, or is beyond the limits.
    """
    crops = np.empty((1, size, size, 3), np.uint8)
    load_training_views(encoded, draws[None], config, crops)
    return crops[0]


def load_training_views(
    encoded: bytes, draws: NDArray[np.float32], config: Augmentation, crops: NDArray[np.uint8]
) -> None:
    """Make several crops of one image, which is decoded once at each scale that they need.

    Args:
        draws: float32 [K, CROP_DRAWS] or wider.
        crops: uint8 [K, size, size, 3], which are written.

    Raises:
        ImageRefused: the image cannot be decoded, or is beyond the limits.
    """
    decoded: dict[int, NDArray[np.uint8] | None] = {}
    places = draws[:, :CROP_DRAWS].tolist()
    with judged(encoded) as image:
        for place, crop in zip(places, crops, strict=True):
            size = len(crop)
            crop[:] = resize_crop(_crop(image, place, size, config, decoded), size)


def _crop(
    image: EncodedImage,
    place: Sequence[float],
    size: int,
    config: Augmentation,
    decoded: dict[int, NDArray[np.uint8] | None],
) -> NDArray[np.uint8]:
    """Cut one crop from an image.

    Args:
        decoded: the image at the scales needed so far, which this adds to; None if a scale is not available.
    """
    crop = _reduced_crop(image, place, size, config, decoded) if config.scaled_decoding else None
    if crop is not None:
        return crop
    if 1 not in decoded:
        decoded[1] = pixels_of(image)
    pixels = decoded[1]
    assert pixels is not None
    left, upper, right, lower = random_crop_box(pixels.shape[1], pixels.shape[0], place, config)
    return pixels[upper:lower, left:right]


def _reduced_crop(
    image: EncodedImage,
    place: Sequence[float],
    size: int,
    config: Augmentation,
    decoded: dict[int, NDArray[np.uint8] | None],
) -> NDArray[np.uint8] | None:
    """Cut the crop from the image at a smaller scale; None if the image or the crop does not allow it."""
    if not is_plain_jpeg(image):
        return None
    box = random_crop_box(image.width, image.height, place, config)
    reduction = reduction_for(min(box[2] - box[0], box[3] - box[1]), size)
    if reduction == 1:
        return None
    if reduction not in decoded:
        decoded[reduction] = jpeg_pixels(image, reduction)
    pixels = decoded[reduction]
    if pixels is None:
        return None
    left, upper, right, lower = (round(edge / reduction) for edge in box)
    return pixels[upper:lower, left:right]


def reduction_for(side: int, size: int, margin: float = REDUCTION_MARGIN) -> int:
    """Return the largest of 1 and REDUCTIONS that leaves a crop's side at least `margin * size` pixels."""
    return next((divisor for divisor in REDUCTIONS if side >= margin * size * divisor), 1)


def resize_crop(crop: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (bicubic, antialiased) to Pillow's result within one level, in a fraction of its time.

    Args:
        crop: uint8 [H, W, 3], of any strides.

    Returns:
        uint8 [size, size, 3].
    """
    # Copied by numpy: torch would start as many threads for each decoding thread as training has. The batch
    # axis must be added first, or torch does not see that the channels are last, and is slow.
    images = torch.from_numpy(crop.copy())[None].permute(0, 3, 1, 2)
    resized = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def load_evaluation_image(
    encoded: bytes,
    size: int,
    *,
    resize_mode: str = "shortest",
    interpolation: str = "bicubic",
    fill_color: int = 0,
) -> NDArray[np.uint8]:
    """Decode and resize as open_clip's own evaluation transform does, to the last bit.

    Args:
        resize_mode, interpolation, fill_color: as in `fit_evaluation_picture`.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ImageRefused: the image cannot be decoded, or is beyond the limits.
    """
    with judged(encoded) as image:
        return fit_evaluation_picture(
            picture_of(image),
            size,
            resize_mode=resize_mode,
            interpolation=interpolation,
            fill_color=fill_color,
        )


def fit_evaluation_picture(
    picture: Image.Image,
    size: int,
    *,
    resize_mode: str = "shortest",
    interpolation: str = "bicubic",
    fill_color: int = 0,
) -> NDArray[np.uint8]:
    """Bring an RGB picture to the size of a model's input as open_clip's own evaluation transform does.

    Args:
        resize_mode: open_clip's names: `shortest` (then a centre crop), `longest` (then margins), `squash`.
        interpolation: `bilinear`; anything else means bicubic, as open_clip does for `random`.
        fill_color: value of the margins in each channel, 0..255.

    Returns:
        uint8 [size, size, 3].
    """
    resampling = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    picture = picture.resize(_resized(picture.width, picture.height, size, resize_mode), resampling)
    canvas = Image.new("RGB", (size, size), (fill_color,) * 3)
    canvas.paste(picture, (_centred(picture.width, size), _centred(picture.height, size)))
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


def augment(pixels: Tensor, draws: Tensor, config: Augmentation) -> Tensor:
    """Augment a batch on the device of the pixels: mirror, affine, colour, blur.

    Augmentations that are switched off cost nothing. Nothing waits for the device, and no step depends on a
    tensor's values, so this can be compiled; on a CPU it is faster uncompiled.

    Args:
        pixels: uint8 [B, 3, H, W].
        draws: float32 [B, AUGMENT_DRAWS] in [0, 1), the numbers after the crop's: mirror, angle, zoom, two
            shifts, brightness, contrast, saturation, grey, blur and its width.
        config: probabilities and ranges.

    Returns:
        uint8 [B, 3, H, W].
    """
    centred = draws * 2.0 - 1.0
    mirrored, greyed = draws[:, 0] < config.flip_prob, draws[:, 8] < config.grey_prob
    moved = bool(config.rotate or config.translate or config.zoom)
    if config.flip_prob and not moved:
        pixels = _mirror(pixels, mirrored)
    if not (moved or config.jitter or config.grey_prob or config.blur_prob):
        return pixels
    # One plane a channel: sampling and mixing of channels are faster on those.
    images = pixels.contiguous().float()
    # The trainer's autocast would keep only 8 bits of what is multiplied here.
    with torch.autocast(pixels.device.type, enabled=False):
        if moved:
            images = _affine(images, mirrored, centred[:, 1:5], config)
        if config.jitter or config.grey_prob:
            images = _colour(images, 1.0 + config.jitter * centred[:, 5:8], greyed)
        if config.blur_prob:
            span = config.blur_sigma_max - config.blur_sigma_min
            sigma = config.blur_sigma_min + span * draws[:, 10]
            images = _blur(
                images, sigma, draws[:, 9] < config.blur_prob, math.ceil(3.0 * config.blur_sigma_max)
            )
    return images.round_().clamp_(0, 255).to(torch.uint8)


def _mirror(pixels: Tensor, mirrored: Tensor) -> Tensor:
    # Differences of bytes wrap around and back; where() takes several times as long on bytes.
    return pixels + (pixels.flip(3) - pixels) * mirrored.view(-1, 1, 1, 1)


def teacher_pixels(pixels: Tensor, draws: Tensor, config: Augmentation) -> Tensor:
    """Return what a teacher sees of crops, uint8 [B, 3, H, W]: what the student sees, or the crops alone."""
    return pixels if config.teacher_view == "weak" else augment(pixels, draws, config)


def _affine(images: Tensor, mirrored: Tensor, centred: Tensor, config: Augmentation) -> Tensor:
    angle = torch.deg2rad(config.rotate * centred[:, 0])
    scale = 1.0 / (1.0 + config.zoom * centred[:, 1])
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    sign = 1.0 - 2.0 * mirrored.float()
    shift = 2.0 * config.translate * centred[:, None, 2:4]
    # Not by affine_grid, whose products of narrow matrices take as long as the sampling.
    along_width = torch.stack([sign * cos, sign * sin], dim=1)[:, None] * _centres(images, 3)
    along_height = torch.stack([-sin, cos], dim=1)[:, None] * _centres(images, 2) + shift
    grid = along_width[:, None, :] + along_height[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _centres(images: Tensor, axis: int) -> Tensor:
    """[edge, 1]: where grid_sample sees the centres of the pixels along an axis, within -1..1."""
    edge = images.shape[axis]
    return ((torch.arange(edge, device=images.device) * 2 + 1) / edge - 1.0)[:, None]


def _colour(images: Tensor, factors: Tensor, greyed: Tensor) -> Tensor:
    """Brightness, contrast and saturation as one affine map of a pixel's channels.

    The three commute, because the weights of luma sum to one: torchvision, which applies them in random
    order, differs only because it clips in between.

    Args:
        factors: [B, 3] of brightness, contrast and saturation; 1 changes nothing.
        greyed: bool [B].
    """
    brightness, contrast, saturation = factors.unbind(dim=1)
    saturation = saturation.masked_fill(greyed, 0.0)[:, None, None]
    means = images.mean(dim=(2, 3)).unbind(dim=1)
    luma = sum(weight * mean for weight, mean in zip(_LUMA, means, strict=True))
    # Weights as scalars: making a tensor of them would copy it to the device, and wait for that.
    towards_grey = torch.stack([(1.0 - saturation) * weight for weight in _LUMA], dim=3).squeeze(2)
    mix = saturation * torch.eye(3, device=images.device) + towards_grey
    gain = (brightness * contrast)[:, None, None]
    offset = (brightness * (1.0 - contrast) * luma)[:, None, None]
    return torch.baddbmm(offset, gain * mix, images.flatten(2)).view_as(images)


def _blur(images: Tensor, sigma: Tensor, chosen: Tensor, radius: int) -> Tensor:
    """Apply a Gaussian blur to the chosen images, which are mirrored beyond their borders.

    Args:
        sigma: [B], pixels, > 0.
        chosen: bool [B]; the others pass through a kernel that changes nothing.
        radius: of the kernel, pixels; less where the image is smaller.
    """
    radius = min(radius, images.shape[2] - 1, images.shape[3] - 1)
    distance = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    weights = torch.where(chosen[:, None], weights, (distance == 0).float())
    weights = weights / weights.sum(dim=1, keepdim=True)
    # One group of the convolution is one channel of one image, so that each image has its own kernel.
    kernels = weights[:, None].expand(-1, images.shape[1], -1).reshape(-1, 1, weights.shape[1])
    planes = F.pad(images.flatten(0, 1)[None], [radius] * 4, mode="reflect")
    planes = F.conv2d(planes, kernels[:, :, None, :], groups=len(kernels))
    planes = F.conv2d(planes, kernels[:, :, :, None], groups=len(kernels))
    return planes.view_as(images)
