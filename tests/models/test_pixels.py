"""uint8 pixels to network input."""

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from beamclip.models.pixels import Preprocessing, normalise_pixels

CLIP_PREPROCESSING = Preprocessing(32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def smooth_image(side: int) -> np.ndarray:
    """[side, side, 3] uint8: waves of other periods in each channel."""
    y, x = np.mgrid[0:side, 0:side] / side
    channels = [np.sin(6 * x + 4 * y), np.cos(9 * x), np.sin(11 * y - 3 * x)]
    return np.stack([127.5 + 127.5 * channel for channel in channels], axis=-1).astype(np.uint8)


def as_pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_pixels_of_the_right_size_are_only_normalised() -> None:
    image = smooth_image(32)
    expected = (image / 255.0 - CLIP_PREPROCESSING.mean) / CLIP_PREPROCESSING.std
    result = normalise_pixels(as_pixels(image), CLIP_PREPROCESSING)
    np.testing.assert_allclose(result[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side", [24, 48, 80])
def test_resizing_agrees_with_open_clips_own_preprocessing_to_one_grey_level(side: int) -> None:
    image = smooth_image(side)
    expected = image_transform_v2(PreprocessCfg(size=32), is_train=False)(Image.fromarray(image))
    result = normalise_pixels(as_pixels(image), CLIP_PREPROCESSING)[0]
    one_level = 1.0 / 255.0 / min(CLIP_PREPROCESSING.std)
    assert (result - expected).abs().max() <= one_level


def test_overshoot_of_the_bicubic_filter_is_clamped_to_the_range_of_pixels() -> None:
    edge = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 255
    result = normalise_pixels(edge, Preprocessing(37, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert result.min() == 0.0
    assert result.max() == 1.0


def test_dtype_and_memory_format_are_as_asked() -> None:
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    result = normalise_pixels(pixels, CLIP_PREPROCESSING, dtype=torch.bfloat16, channels_last=True)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert normalise_pixels(pixels, CLIP_PREPROCESSING).is_contiguous()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"must be uint8 \[B, 3, H, W\], not torch.float32 \[1, 3, 8, 8\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"not torch.uint8 \[3, 8, 8\]"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), r"not torch.uint8 \[1, 8, 8, 3\]"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "must be square, not 8 x 9"),
    ],
)
def test_anything_but_square_uint8_rgb_is_refused(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalise_pixels(pixels, CLIP_PREPROCESSING)


def test_constants_made_under_inference_mode_do_not_break_a_later_backward() -> None:
    preprocessing = Preprocessing(8, (0.125, 0.25, 0.5), (0.5, 0.25, 0.125))
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with torch.inference_mode():
        normalise_pixels(pixels, preprocessing)
    weight = torch.ones(1, requires_grad=True)
    (normalise_pixels(pixels, preprocessing) * weight).sum().backward()
    assert weight.grad is not None
