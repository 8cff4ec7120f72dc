"""Turn uint8 pixels into a network's input, on the device that holds the pixels."""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images."""

    size: int
    """Side of the square input, pixels."""

    mean: tuple[float, float, float]
    """Mean of each RGB channel, on the scale 0..1."""

    std: tuple[float, float, float]
    """Standard deviation of each RGB channel, on the scale 0..1."""


def normalise_pixels(
    pixels: Tensor,
    preprocessing: Preprocessing,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Resize where needed (bicubic, antialiased, as CLIP was trained) and normalise.

    Args:
        pixels: uint8 [B, 3, H, H], RGB, already cropped to a square.
        preprocessing: size, mean and std of the network that will read the result.
        dtype: of the result; the arithmetic is float32.
        channels_last: memory format of the result; convolutions are faster with it.

    Returns:
        [B, 3, size, size] on the device of the pixels.

    Raises:
        ValueError: pixels are not uint8, not [B, 3, H, W], or not square.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels must be uint8 [B, 3, H, W], not {pixels.dtype} {list(pixels.shape)}.")
    if pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"pixels must be square, not {pixels.shape[2]} x {pixels.shape[3]}: crop first.")
    images = pixels.float()
    if pixels.shape[-1] != preprocessing.size:
        size = (preprocessing.size, preprocessing.size)
        images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        images = images.clamp(0.0, 255.0)  # bicubic weights overshoot at edges
    scale, shift = _scale_and_shift(preprocessing.mean, preprocessing.std, pixels.device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.addcmul(shift, images, scale).to(dtype).contiguous(memory_format=memory_format)


@lru_cache(maxsize=32)  # a fresh copy to a GPU each step would make the step wait for the device
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """[1, 3, 1, 1] each: (x / 255 - mean) / std = x * scale + shift."""
    with torch.inference_mode(False):
        std_c = torch.tensor(std, device=device).view(1, 3, 1, 1)
        mean_c = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        return 1.0 / (255.0 * std_c), -mean_c / std_c
