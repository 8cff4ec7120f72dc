"""Random numbers by sample, decoding, crops, open_clip's evaluation transform, batched augmentation."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from scipy import stats

from beamclip.data.transforms import (
    AUGMENT_DRAWS,
    CROP_DRAWS,
    DRAWS,
    AugmentConfig,
    augment,
    decode_image,
    load_evaluation_image,
    load_training_image,
    random_crop_box,
    sample_uniforms,
)

IDENTITY = AugmentConfig(
    crop_scale_min=1.0, crop_ratio=1.0, flip=0.0, rotate=0.0, translate=0.0, zoom=0.0, jitter=0.0, grey=0.0
)
EVERYTHING = AugmentConfig(flip=0.5, grey=0.3)
KEYS = [f"{i:09d}" for i in range(4000)]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def photo(width: int, height: int) -> Image.Image:
    """Noise over a gradient, so that a shift by a pixel changes every value."""
    ramp = np.linspace(0, 128, width)[None, :, None] + np.linspace(0, 64, height)[:, None, None]
    return Image.fromarray((ramp + noise(width, height) // 5).astype(np.uint8))


def pixel_batch(count: int = 6, size: int = 17) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)


def augment_draws(count: int = 6) -> torch.Tensor:
    return torch.from_numpy(sample_uniforms(0, 0, KEYS[:count]))[:, CROP_DRAWS : CROP_DRAWS + AUGMENT_DRAWS]


def test_a_sample_draws_the_same_whatever_its_batch() -> None:
    together = sample_uniforms(3, 5, KEYS[:64])
    alone = np.stack([sample_uniforms(3, 5, [key])[0] for key in KEYS[:64]])
    backwards = sample_uniforms(3, 5, KEYS[:64][::-1])[::-1]
    assert together.shape == (64, DRAWS)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, backwards)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 2), (1, 11), (11, 1), (-1, 12)])
def test_another_seed_or_epoch_draws_other_numbers(seed: int, epoch: int) -> None:
    first, other = sample_uniforms(1, 12, KEYS[:99]), sample_uniforms(seed, epoch, KEYS[:99])
    assert not (first == other).all(axis=1).any()


def test_draws_are_uniform() -> None:
    draws = sample_uniforms(0, 0, KEYS)
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_draws_are_independent_between_keys_epochs_and_columns() -> None:
    first, second = sample_uniforms(0, 0, KEYS), sample_uniforms(0, 1, KEYS)
    limit = 5.0 / np.sqrt(len(KEYS))
    columns = np.corrcoef(np.concatenate([first, second], axis=1).T) - np.eye(2 * DRAWS)
    neighbours = [np.corrcoef(first[:-1, i], first[1:, j])[0, 1] for i in range(DRAWS) for j in range(DRAWS)]
    assert np.abs(columns).max() < limit
    assert np.abs(neighbours).max() < limit


def test_neighbouring_keys_fill_the_unit_square() -> None:
    """Chi-squared over an 8 x 8 grid of (draw of one key, draw of the next)."""
    draws = sample_uniforms(0, 0, KEYS)[:, 0]
    counts, _, _ = np.histogram2d(draws[:-1:2], draws[1::2], bins=8, range=[[0, 1], [0, 1]])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 480), (480, 640), (900, 30), (7, 500), (1, 1)])
def test_a_crop_lies_inside_the_image_and_keeps_the_drawn_area(width: int, height: int) -> None:
    config = AugmentConfig(crop_scale_min=0.4)
    for draws in sample_uniforms(0, 0, KEYS[:500])[:, :CROP_DRAWS].tolist():
        left, upper, right, lower = random_crop_box(width, height, draws, config)
        assert 0.0 <= left < right <= width + 1e-9
        assert 0.0 <= upper < lower <= height + 1e-9
        wanted = max(1.0, (0.4 + 0.6 * draws[0]) * width * height)
        assert (right - left) * (lower - upper) == pytest.approx(wanted)


def test_aspect_ratios_are_log_uniform_where_every_crop_fits() -> None:
    config = AugmentConfig(crop_scale_min=0.05, crop_ratio=2.0)
    ratios = []
    for draws in sample_uniforms(0, 0, KEYS)[:, :CROP_DRAWS].tolist():
        left, upper, right, lower = random_crop_box(1000, 1000, [draws[0] * 0.3, *draws[1:]], config)
        ratios.append(np.log2((right - left) / (lower - upper)))
    assert stats.kstest(ratios, "uniform", args=(-1.0, 2.0)).pvalue > 1e-4


@pytest.mark.parametrize(("across", "down"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_crops_reach_every_corner(across: float, down: float) -> None:
    config = AugmentConfig(crop_scale_min=0.24, crop_ratio=1.0)
    box = random_crop_box(100, 60, [0.0, 0.5, across, down], config)
    side = (0.24 * 100 * 60) ** 0.5
    corner = (across * (100 - side), down * (60 - side))
    assert box == pytest.approx((*corner, corner[0] + side, corner[1] + side))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 40), (13, 200)])
def test_a_crop_scale_of_one_keeps_the_whole_image(width: int, height: int) -> None:
    for draws in sample_uniforms(0, 0, KEYS[:50])[:, :CROP_DRAWS].tolist():
        box = random_crop_box(width, height, draws, AugmentConfig(crop_scale_min=1.0))
        assert box == pytest.approx((0.0, 0.0, width, height))


def test_an_area_of_zero_still_gives_a_pixel() -> None:
    encoded = encode(photo(9, 5))
    config = AugmentConfig(crop_scale_min=0.0)
    assert load_training_image(encoded, np.zeros(DRAWS, np.float32), 8, config).shape == (8, 8, 3)


def test_training_images_without_augmentation_are_the_resized_originals() -> None:
    image = photo(40, 40)
    draws = sample_uniforms(0, 0, ["a"])[0]
    np.testing.assert_array_equal(load_training_image(encode(image), draws, 40, IDENTITY), np.asarray(image))
    half = image.resize((20, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(load_training_image(encode(image), draws, 20, IDENTITY), np.asarray(half))


def test_training_crops_show_what_the_box_holds() -> None:
    """A crop of the right half of a two-coloured image has the right half's colour."""
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (40, 0, 80, 40))
    config = AugmentConfig(crop_scale_min=0.2, crop_ratio=1.0)
    draws = np.array([0.0, 0.5, 0.999, 0.5, *[0.5] * AUGMENT_DRAWS], np.float32)
    assert (load_training_image(encode(image), draws, 10, config) == [0, 0, 255]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_decode_to_rgb(kind: str) -> None:
    image = decode_image(encode(Image.new("RGB", (20, 10), (200, 100, 50)), kind))
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image).astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.7])
def test_bytes_that_are_no_whole_image_are_refused(kind: str, kept: float) -> None:
    encoded = encode(photo(64, 64), kind)
    with pytest.raises(ValueError, match="cannot decode the image"):
        decode_image(encoded[: int(kept * len(encoded))])


def transparent_left() -> Image.Image:
    """The left half is clear, the right half red."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (4, 0, 8, 8))
    return image


def palette_left() -> bytes:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 255, 0, 0])
    image.paste(1, (4, 0, 8, 8))
    return encode(image, transparency=0)


def colour_key_left() -> bytes:
    """PNG may name one colour of an RGB image as the clear one."""
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    image.paste((255, 0, 0), (4, 0, 8, 8))
    return encode(image, transparency=(1, 2, 3))


TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "RGBA png": lambda: encode(transparent_left()),
    "RGBA webp": lambda: encode(transparent_left(), "WEBP", lossless=True),
    "palette png": palette_left,
    "palette gif": lambda: encode(transparent_left(), "GIF"),
    "colour key png": colour_key_left,
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pixels_turn_white(name: str) -> None:
    pixels = np.asarray(decode_image(TRANSPARENT[name]()))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == [255, 0, 0]).all()


def test_transparent_grey_turns_white() -> None:
    pixels = np.asarray(decode_image(encode(transparent_left().convert("LA"))))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == pixels[0, 7, 0]).all()
    assert pixels[0, 7, 0] < 100


def test_half_transparent_pixels_mix_with_white() -> None:
    image = Image.new("RGBA", (4, 4), (100, 0, 200, 128))
    share = 128 / 255
    wanted = [share * value + (1 - share) * 255 for value in (100, 0, 200)]
    assert np.abs(np.asarray(decode_image(encode(image))) - np.array(wanted)).max() <= 1.0


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = np.asarray(decode_image(encode(Image.fromarray(deep))))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels - (deep / 257.0)[:, :, None]).max() <= 1.0


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise(9, 7, 1)[:, :, 0]
    pixels = np.asarray(decode_image(encode(Image.fromarray(grey))))
    assert (pixels == grey[:, :, None]).all()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_photos_stand_upright(orientation: int, upright: Callable[[Any], Any]) -> None:
    pixels = noise(6, 4)
    decoded = decode_image(turned(Image.fromarray(pixels), orientation))
    np.testing.assert_array_equal(np.asarray(decoded), upright(pixels))


def test_damaged_exif_costs_no_image() -> None:
    pixels = noise(6, 4)
    encoded = encode(Image.fromarray(pixels), "PNG", exif=b"Exif\x00\x00XX\x00\x00\x00\x00")
    np.testing.assert_array_equal(np.asarray(decode_image(encoded)), pixels)


SIZES = [(64, 64), (97, 61), (61, 97), (41, 90), (300, 33), (20, 17), (32, 32), (65, 32), (250, 1)]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("size", [32, 33])
def test_evaluation_images_equal_open_clips(resize_mode: str, interpolation: str, size: int) -> None:
    config = PreprocessCfg(
        size=size, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=interpolation,
        resize_mode=resize_mode, fill_color=60,
    )  # fmt: skip
    reference = image_transform_v2(config, is_train=False)
    for width, height in SIZES:
        if resize_mode == "longest" and size * min(width, height) < max(width, height) / 2:
            continue  # open_clip would resize to no pixels at all
        image = photo(width, height)
        wanted = (reference(image) * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
        found = load_evaluation_image(
            encode(image), size, resize_mode=resize_mode, interpolation=interpolation, fill_color=60
        )
        assert (found.dtype, found.shape) == (np.uint8, (size, size, 3))
        np.testing.assert_array_equal(found, wanted, err_msg=f"{width} x {height}")


def test_a_line_of_pixels_survives_the_longest_mode() -> None:
    assert load_evaluation_image(encode(photo(250, 1)), 32, resize_mode="longest").any()


def test_augmentation_without_effects_changes_nothing() -> None:
    pixels = pixel_batch()
    found = augment(pixels, augment_draws(), IDENTITY)
    assert found.dtype == torch.uint8
    assert torch.equal(found, pixels)


def test_the_same_draws_give_the_same_pixels_and_leave_the_input_alone() -> None:
    pixels, draws = pixel_batch(), augment_draws()
    before = pixels.clone()
    first = augment(pixels, draws, EVERYTHING)
    assert torch.equal(first, augment(pixels, draws, EVERYTHING))
    assert not torch.equal(first, pixels)
    assert torch.equal(pixels, before)


def test_each_image_is_augmented_by_its_own_draws_only() -> None:
    pixels, draws = pixel_batch(), augment_draws()
    whole = augment(pixels, draws, EVERYTHING)
    for i in range(len(pixels)):
        alone = augment(pixels[i : i + 1], draws[i : i + 1], EVERYTHING)
        assert (alone.int() - whole[i : i + 1].int()).abs().max() <= 1


@pytest.mark.parametrize("size", [16, 17])
def test_the_mirror_is_exact(size: int) -> None:
    pixels = pixel_batch(size=size)
    assert torch.equal(augment(pixels, augment_draws(), replace(IDENTITY, flip=1.0)), pixels.flip(3))


def test_the_mirror_strikes_as_often_as_asked() -> None:
    pixels = pixel_batch(1).expand(400, -1, -1, -1)
    found = augment(pixels, augment_draws(400), replace(IDENTITY, flip=0.3))
    mirrored = (found == pixels.flip(3)).flatten(1).all(1)
    straight = (found == pixels).flatten(1).all(1)
    assert (mirrored ^ straight).all()
    assert 0.3 - 0.1 < mirrored.float().mean() < 0.3 + 0.1


def test_an_affine_map_of_zero_changes_nothing() -> None:
    pixels = pixel_batch()
    middle = torch.full((6, AUGMENT_DRAWS), 0.5)
    assert torch.equal(augment(pixels, middle, AugmentConfig(jitter=0.0)), pixels)


def test_a_quarter_turn_rotates_by_ninety_degrees() -> None:
    pixels, draws = pixel_batch(), torch.full((6, AUGMENT_DRAWS), 0.5)
    draws[:, 1] = 1.0
    found = augment(pixels, draws, replace(IDENTITY, rotate=90.0))
    turns = [torch.rot90(pixels, k, (2, 3)) for k in (1, -1)]
    assert any(torch.equal(found, turn) for turn in turns)


def test_a_shift_moves_by_its_share_of_the_width() -> None:
    pixels, draws = pixel_batch(size=20), torch.full((6, AUGMENT_DRAWS), 0.5)
    draws[:, 3] = 1.0
    found = augment(pixels, draws, replace(IDENTITY, translate=0.25))
    assert torch.equal(found[..., :15], pixels[..., 5:])


def test_zoom_scales_about_the_centre() -> None:
    """Twice as large: the middle half of the pixels fills the image."""
    pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    pixels[..., 4:12, 4:12] = 200
    draws = torch.full((1, AUGMENT_DRAWS), 0.5)
    draws[:, 2] = 1.0
    found = augment(pixels, draws, replace(IDENTITY, zoom=1.0))
    assert (found[..., 1:-1, 1:-1] == 200).all()


def test_grey_images_have_equal_channels_and_the_brightness_of_the_original() -> None:
    pixels = pixel_batch()
    found = augment(pixels, augment_draws(), replace(IDENTITY, grey=1.0)).float()
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    assert (found[:, :1] - (pixels * luma).sum(1, keepdim=True)).abs().max() <= 0.51


@pytest.mark.parametrize("draw", [0.0, 0.25, 1.0])
def test_brightness_scales_every_channel(draw: float) -> None:
    pixels, draws = pixel_batch() // 2, torch.full((6, AUGMENT_DRAWS), 0.5)
    draws[:, 5] = draw
    found = augment(pixels, draws, replace(IDENTITY, jitter=0.4)).float()
    wanted = pixels.float() * (1.0 + 0.4 * (2.0 * draw - 1.0))
    assert (found - wanted).abs().max() <= 0.51


def test_full_contrast_loss_leaves_the_mean() -> None:
    pixels, draws = pixel_batch(), torch.full((6, AUGMENT_DRAWS), 0.5)
    draws[:, 6] = 0.0
    found = augment(pixels, draws, replace(IDENTITY, jitter=1.0))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    mean = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    assert (found - mean).abs().max() <= 0.51


def test_colours_stay_in_range() -> None:
    bright = torch.full((4, 3, 8, 8), 250, dtype=torch.uint8)
    draws = torch.ones(4, AUGMENT_DRAWS)
    assert (augment(bright, draws, replace(IDENTITY, jitter=0.5)) == 255).all()
