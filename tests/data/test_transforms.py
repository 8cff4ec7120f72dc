"""Random numbers by sample, crops, open_clip's evaluation transform, batched augmentation."""

import io
import math
import threading
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from pictures import encode, noise, photo
from PIL import Image
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from beamclip.data.config import Augmentation
from beamclip.data.decode import REDUCTIONS, is_plain_jpeg
from beamclip.data.image_headers import judge
from beamclip.data.transforms import (
    AUGMENT_DRAWS,
    CROP_DRAWS,
    DRAWS,
    REDUCTION_MARGIN,
    augment,
    load_evaluation_image,
    load_training_image,
    load_training_views,
    random_crop_box,
    reduction_for,
    resize_crop,
    sample_uniforms,
)
from beamclip.errors import InputError

IDENTITY = Augmentation(
    crop_scale_min=1.0,
    crop_ratio=1.0,
    flip_prob=0.0,
    rotate=0.0,
    translate=0.0,
    zoom=0.0,
    jitter=0.0,
    grey_prob=0.0,
)
EVERYTHING = Augmentation(flip_prob=0.5, grey_prob=0.3, blur_prob=0.5)
KEYS = [f"{i:09d}" for i in range(4000)]


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
    config = Augmentation(crop_scale_min=0.4)
    for draws in sample_uniforms(0, 0, KEYS[:500])[:, :CROP_DRAWS].tolist():
        left, upper, right, lower = random_crop_box(width, height, draws, config)
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        wanted = (0.4 + 0.6 * draws[0]) * width * height
        rounding = 0.5 * (right - left + lower - upper) + 0.5
        assert (right - left) * (lower - upper) == pytest.approx(wanted, abs=rounding)


def test_aspect_ratios_are_log_uniform_where_every_crop_fits() -> None:
    config = Augmentation(crop_scale_min=0.05, crop_ratio=2.0)
    ratios = []
    for draws in sample_uniforms(0, 0, KEYS)[:, :CROP_DRAWS].tolist():
        left, upper, right, lower = random_crop_box(1000, 1000, [draws[0] * 0.3, *draws[1:]], config)
        ratios.append(np.log2((right - left) / (lower - upper)))
    assert stats.kstest(ratios, "uniform", args=(-1.0, 2.0)).pvalue > 1e-4


@pytest.mark.parametrize(("across", "down"), [(0.0, 0.0), (0.0, 0.999), (0.999, 0.0), (0.999, 0.999)])
def test_crops_reach_every_corner(across: float, down: float) -> None:
    config = Augmentation(crop_scale_min=0.24, crop_ratio=1.0)
    side = 38  # the root of 0.24 * 100 * 60
    left, upper = (across > 0) * (100 - side), (down > 0) * (60 - side)
    assert random_crop_box(100, 60, [0.0, 0.5, across, down], config) == (
        left,
        upper,
        left + side,
        upper + side,
    )


def test_each_place_of_a_crop_is_as_likely_as_the_others() -> None:
    config = Augmentation(crop_scale_min=0.5, crop_ratio=1.0)
    draws = sample_uniforms(0, 0, KEYS)[:, :CROP_DRAWS]
    boxes = [random_crop_box(20, 20, [0.0, 0.5, *place[2:]], config) for place in draws.tolist()]
    for edge in (0, 1):
        counts = np.bincount([box[edge] for box in boxes])
        assert len(counts) == 20 - 14 + 1
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(("width", "height"), [(64, 64), (90, 40), (13, 200)])
def test_a_crop_scale_of_one_keeps_the_whole_image(width: int, height: int) -> None:
    for draws in sample_uniforms(0, 0, KEYS[:50])[:, :CROP_DRAWS].tolist():
        box = random_crop_box(width, height, draws, Augmentation(crop_scale_min=1.0))
        assert box == (0, 0, width, height)


def test_an_area_of_zero_still_gives_a_pixel() -> None:
    encoded = encode(photo(9, 5))
    config = Augmentation(crop_scale_min=1e-9)
    assert load_training_image(encoded, np.zeros(DRAWS, np.float32), 8, config).shape == (8, 8, 3)


def levels_apart(found: Any, wanted: Any) -> int:
    return int(np.abs(np.asarray(found).astype(int) - np.asarray(wanted)).max())


def test_training_images_without_augmentation_are_the_resized_originals() -> None:
    image = photo(40, 40)
    draws = sample_uniforms(0, 0, ["a"])[0]
    np.testing.assert_array_equal(load_training_image(encode(image), draws, 40, IDENTITY), np.asarray(image))
    half = image.resize((20, 20), Image.Resampling.BICUBIC)
    found = load_training_image(encode(image), draws, 20, IDENTITY)
    assert (found.dtype, found.shape) == (np.uint8, (20, 20, 3))
    assert levels_apart(found, half) <= 1


@pytest.mark.parametrize("box", [(0, 0, 97, 61), (3, 5, 60, 61), (40, 20, 41, 21), (10, 0, 97, 8)])
@pytest.mark.parametrize("size", [1, 16, 64, 224])
def test_crops_are_resized_as_pillow_does(box: tuple[int, int, int, int], size: int) -> None:
    image = photo(97, 61)
    left, upper, right, lower = box
    found = resize_crop(np.asarray(image)[upper:lower, left:right], size)
    wanted = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    assert (found.dtype, found.shape) == (np.uint8, (size, size, 3))
    assert levels_apart(found, wanted) <= 1 + (size == 224)
    assert (found == np.asarray(wanted)).mean() > 0.9


def test_threads_that_decode_start_no_others() -> None:
    """Torch would give each of them a pool of its own."""
    crop, threads, count = noise(400, 400), torch.get_num_threads(), 3
    encoded = encode(photo(400, 400), "JPEG")
    done, checked = threading.Barrier(count + 1), threading.Event()

    def work() -> None:
        resize_crop(crop[10:, 10:], 224)
        load_training_image(encoded, np.full(DRAWS, 0.5, np.float32), 224, Augmentation())
        done.wait(60)
        checked.wait(60)

    torch.set_num_threads(2)
    try:
        resize_crop(crop, 224)
        before = psutil.Process().num_threads()
        workers = [threading.Thread(target=work) for _ in range(count)]
        for worker in workers:
            worker.start()
        done.wait(60)
        assert psutil.Process().num_threads() - before <= count
    finally:
        checked.set()
        torch.set_num_threads(threads)
    for worker in workers:
        worker.join()


def test_a_reduction_leaves_the_crop_large_enough() -> None:
    for side in range(1, 2000, 7):
        divisor = reduction_for(side, 48)
        assert divisor == 1 or side / divisor >= REDUCTION_MARGIN * 48
        larger = [each for each in REDUCTIONS if each > divisor]
        assert all(side / each < REDUCTION_MARGIN * 48 for each in larger)


def smooth(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(9, 7)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("width", "height"), [(700, 500), (333, 801)])
def test_scaled_decoding_shows_the_same_crop(width: int, height: int) -> None:
    encoded = encode(smooth(width, height), "JPEG", quality=95)
    whole = Augmentation(crop_scale_min=0.3, scaled_decoding=False)
    scaled = replace(whole, scaled_decoding=True)
    for draws in sample_uniforms(0, 0, KEYS[:20]):
        found = load_training_image(encoded, draws, 32, scaled)
        wanted = load_training_image(encoded, draws, 32, whole)
        assert not np.array_equal(found, wanted)
        shifted = np.abs(np.diff(wanted.astype(int), axis=1)).mean()
        assert np.abs(found.astype(int) - wanted).mean() < 0.4 * shifted


def test_scaled_decoding_leaves_small_crops_other_formats_and_turned_photos_alone() -> None:
    image, exif = photo(300, 280), Image.Exif()
    exif[0x0112] = 6
    for encoded, size in (
        (encode(image, "JPEG"), 128),
        (encode(image), 32),
        (encode(image, "JPEG", exif=exif), 32),
    ):
        for draws in sample_uniforms(0, 0, KEYS[:5]):
            found = load_training_image(encoded, draws, size, Augmentation(scaled_decoding=True))
            wanted = load_training_image(encoded, draws, size, Augmentation(scaled_decoding=False))
            np.testing.assert_array_equal(found, wanted)


def test_a_jpeg_is_cropped_and_resized_from_pillows_pixels() -> None:
    image = photo(90, 70)
    encoded = encode(image, "JPEG")
    assert is_plain_jpeg(judge(encoded))
    config = Augmentation(scaled_decoding=False)
    for draws in sample_uniforms(0, 0, KEYS[:20]):
        box = random_crop_box(90, 70, draws.tolist(), config)
        wanted = Image.open(io.BytesIO(encoded)).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        assert levels_apart(load_training_image(encoded, draws, 32, config), wanted) <= 1


def test_training_crops_show_what_the_box_holds() -> None:
    """A crop of the right half of a two-coloured image has the right half's colour."""
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (40, 0, 80, 40))
    config = Augmentation(crop_scale_min=0.2, crop_ratio=1.0)
    draws = np.array([0.0, 0.5, 0.999, 0.5, *[0.5] * AUGMENT_DRAWS], np.float32)
    assert (load_training_image(encode(image), draws, 10, config) == [0, 0, 255]).all()


SIZES = [(64, 64), (97, 61), (61, 97), (41, 90), (300, 33), (20, 17), (32, 32), (65, 32), (250, 5)]


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
    assert load_evaluation_image(encode(photo(50, 1)), 8, resize_mode="longest").any()


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
    assert torch.equal(augment(pixels, augment_draws(), replace(IDENTITY, flip_prob=1.0)), pixels.flip(3))


def test_the_mirror_strikes_as_often_as_asked() -> None:
    pixels = pixel_batch(1).expand(400, -1, -1, -1)
    found = augment(pixels, augment_draws(400), replace(IDENTITY, flip_prob=0.3))
    mirrored = (found == pixels.flip(3)).flatten(1).all(1)
    straight = (found == pixels).flatten(1).all(1)
    assert (mirrored ^ straight).all()
    assert 0.3 - 0.1 < mirrored.float().mean() < 0.3 + 0.1


def test_an_affine_map_of_zero_changes_nothing() -> None:
    pixels = pixel_batch()
    middle = torch.full((6, AUGMENT_DRAWS), 0.5)
    assert torch.equal(augment(pixels, middle, Augmentation(jitter=0.0)), pixels)


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
    found = augment(pixels, augment_draws(), replace(IDENTITY, grey_prob=1.0)).float()
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


def test_both_ends_of_the_blur_must_be_positive_and_in_order() -> None:
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(InputError, match=f"blur_sigma_min is {low}: give a number above 0"):
            Augmentation(blur_sigma_min=low, blur_sigma_max=high)
    with pytest.raises(InputError, match=r"blur_sigma_min is 2\.0 and blur_sigma_max 1\.0"):
        Augmentation(blur_sigma_min=2.0, blur_sigma_max=1.0)


LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def mild_batch(count: int = 6, size: int = 24) -> torch.Tensor:
    """Pixels that mild changes do not take out of their range."""
    return pixel_batch(count, size) // 3 + 70


@pytest.mark.parametrize("order", permutations(range(3)))
def test_jitter_equals_torchvisions_in_any_order(order: tuple[int, ...]) -> None:
    pixels, draws = mild_batch(), augment_draws()
    found = augment(pixels, draws, replace(IDENTITY, jitter=0.3)).float()
    steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for i in range(len(pixels)):
        wanted = pixels[i] / 255.0
        for step in order:
            wanted = steps[step](wanted, float(1.0 + 0.3 * (2.0 * draws[i, 5 + step] - 1.0)))
        assert (found[i] - 255.0 * wanted).abs().max() <= 0.51 + 0.1  # torchvision rounds its luma weights


def test_grey_equals_torchvisions() -> None:
    pixels = pixel_batch()
    found = augment(pixels, augment_draws(), replace(IDENTITY, grey_prob=1.0)).float()
    wanted = functional.rgb_to_grayscale(pixels / 255.0, num_output_channels=3) * 255.0
    assert (found - wanted).abs().max() <= 0.51 + 0.1


@pytest.mark.parametrize("draw", [0.0, 0.3, 1.0])
def test_rotation_and_zoom_equal_torchvisions_inside_the_image(draw: float) -> None:
    pixels, draws = smooth_batch(), torch.full((4, AUGMENT_DRAWS), 0.5)
    draws[:, 1], draws[:, 2] = draw, 1.0 - draw
    found = augment(pixels, draws, replace(IDENTITY, rotate=20.0, zoom=0.2)).float()
    wanted = functional.affine(
        pixels.float(),
        angle=-20.0 * (2.0 * draw - 1.0),
        translate=[0.0, 0.0],
        scale=1.0 + 0.2 * (1.0 - 2.0 * draw),
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    assert (found - wanted)[..., 12:-12, 12:-12].abs().max() <= 0.6


def smooth_batch() -> torch.Tensor:
    images = [
        Image.fromarray(noise(5, 5, seed=i)).resize((48, 48), Image.Resampling.BICUBIC) for i in range(4)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("draw", [0.0, 0.4, 1.0])
def test_blur_equals_torchvisions(draw: float) -> None:
    pixels, draws = pixel_batch(size=24), torch.full((6, AUGMENT_DRAWS), 0.0)
    draws[:, 10] = draw
    config = replace(IDENTITY, blur_prob=1.0, blur_sigma_min=0.5, blur_sigma_max=2.0)
    found = augment(pixels, draws, config).float()
    wanted = functional.gaussian_blur(pixels.float(), kernel_size=[13, 13], sigma=[0.5 + 1.5 * draw] * 2)
    assert (found - wanted).abs().max() <= 0.51


def test_blur_has_a_sigma_for_each_image_and_spares_the_others() -> None:
    pixels, draws = pixel_batch(count=40, size=24), augment_draws(40)
    config = replace(IDENTITY, blur_prob=0.5, blur_sigma_min=0.8)
    found = augment(pixels, draws, config)
    chosen = draws[:, 9] < 0.5
    assert 5 < chosen.sum() < 35
    assert torch.equal(found[~chosen], pixels[~chosen])
    for i in chosen.nonzero().flatten().tolist():
        sigma = 0.8 + 1.2 * float(draws[i, 10])
        wanted = functional.gaussian_blur(pixels[i].float(), kernel_size=[13, 13], sigma=[sigma, sigma])
        assert (found[i] - wanted).abs().max() <= 0.51


def test_blur_keeps_a_plain_image_smaller_than_its_kernel() -> None:
    plain = torch.full((2, 3, 5, 4), 77, dtype=torch.uint8)
    config = replace(IDENTITY, blur_prob=1.0, blur_sigma_max=9.0)
    assert torch.equal(augment(plain, augment_draws(2), config), plain)


def test_a_trainers_autocast_does_not_reach_the_pixels() -> None:
    pixels, draws = pixel_batch(), augment_draws()
    wanted = augment(pixels, draws, EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(pixels, draws, EVERYTHING), wanted)


@pytest.mark.slow
def test_the_augmentation_is_one_graph() -> None:
    """No step waits for a value of a tensor; a graph could not hold it."""
    pixels, draws = pixel_batch(), augment_draws()
    compiled = torch.compile(augment, backend="eager", fullgraph=True)
    assert torch.equal(compiled(pixels, draws, EVERYTHING), augment(pixels, draws, EVERYTHING))


COUNT = 600
QUANTILES = (0.1, 0.35, 0.65, 0.9)


def coloured() -> torch.Tensor:
    """One image of middling colours, brighter to its left."""
    ramp = torch.linspace(30, 0, 32).view(1, 1, 32)
    return (smooth_batch()[0, :, :32, :32] // 4 + 70 + ramp).to(torch.uint8)


def figures(images: torch.Tensor) -> dict[str, NDArray[np.float64]]:
    """Of each image [N, 3, H, W]: what the eye would tell augmentations apart by."""
    luma = (images * LUMA).sum(1)
    values = {
        "brightness": luma.mean((1, 2)),
        "contrast": luma.std((1, 2)),
        "saturation": (images - luma[:, None]).abs().mean((1, 2, 3)),
        "gradient": luma.diff(dim=2).square().mean((1, 2)) + luma.diff(dim=1).square().mean((1, 2)),
        "side": luma[..., :16].mean((1, 2)) - luma[..., 16:].mean((1, 2)),
    }
    return {name: value.double().numpy() for name, value in values.items()}


TORCHVISIONS = {
    "jitter": (
        {"jitter": 0.3},
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
    ),
    "grey_prob": ({"grey_prob": 0.3}, v2.RandomGrayscale(0.3)),
    "flip_prob": ({"flip_prob": 0.4}, v2.RandomHorizontalFlip(0.4)),
    "blur_prob": ({"blur_prob": 0.5}, v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5)),
}
TORCHVISIONS["all"] = (
    {name: value for changes, _ in TORCHVISIONS.values() for name, value in changes.items()},
    v2.Compose([transform for _, transform in TORCHVISIONS.values()]),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_augmentations_are_distributed_as_torchvisions(name: str) -> None:
    changes, transform = TORCHVISIONS[name]
    image = coloured()
    draws = augment_draws(COUNT)
    ours = figures(augment(image.expand(COUNT, -1, -1, -1), draws, replace(IDENTITY, **changes)).float())
    torch.manual_seed(0)
    theirs = figures(torch.stack([(transform(image / 255.0) * 255.0).round() for _ in range(COUNT)]))
    untouched = {key: value.item() for key, value in figures(image[None].float()).items()}
    for figure, found in ours.items():
        wanted = theirs[figure]
        scale = max(wanted.std(), 0.02 * abs(untouched[figure]))
        assert found.mean() == pytest.approx(wanted.mean(), abs=4.0 * scale * math.sqrt(2.0 / COUNT)), figure
        assert found.std() == pytest.approx(wanted.std(), abs=0.15 * scale), figure
        gaps = np.quantile(found, QUANTILES) - np.quantile(wanted, QUANTILES)
        assert np.abs(gaps).max() < 0.35 * scale, figure


@pytest.mark.parametrize("edges", [(900, 700), (60, 80)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_views_of_one_image_are_those_that_are_loaded_one_by_one(edges: tuple[int, int], kind: str) -> None:
    """Crops of different sizes need different scales of a large JPEG."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (*edges, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    config = Augmentation(crop_scale_min=0.02)
    draws = generator.random((6, 4), np.float32)
    views = np.empty((len(draws), 48, 48, 3), np.uint8)
    load_training_views(file.getvalue(), draws, config, views)
    for view, own in zip(views, draws, strict=True):
        assert np.array_equal(view, load_training_image(file.getvalue(), own, 48, config))
