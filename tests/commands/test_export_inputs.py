"""The images of an export: which ones are compared, and which calibrate int8."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beamclip.commands.export_inputs import (
    CALIBRATION_IMAGES,
    CHECKED_IMAGES,
    RunFacts,
    calibration_images,
    checked_images,
    show_parities,
    some_pictures,
)
from beamclip.export.parity import compare
from beamclip.export.pictures import fitted_picture
from beamclip.models.clip import LoadedClip, new_clip


@pytest.fixture(scope="module")
def clip() -> LoadedClip:
    return new_clip("tiny-vit", seed=0)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """images(name, numbers, folders=False): a folder of images whose red and green say their number."""

    def make(name: str, numbers: range, *, folders: bool = False) -> Path:
        for number in numbers:
            folder = tmp_path / name / (f"{number:05d}" if folders else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(folder / f"{number:05d}.png")
        return tmp_path / name

    return make


def numbers_of(pixels: torch.Tensor | None) -> list[int]:
    assert pixels is not None
    return [int(each[0, 0, 0]) + 256 * int(each[1, 0, 0]) for each in pixels]


def taken(folder: Path, clip: LoadedClip, most: int, half: int | None = None) -> list[int]:
    return [
        int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])
        for _, image in some_pictures(str(folder), clip, most, half=half)
    ]


def test_images_of_a_folder_are_spread_over_all_of_it(clip: LoadedClip, images: Callable[..., Path]) -> None:
    flat = taken(images("flat", range(100)), clip, 5)
    assert flat == [10, 30, 50, 70, 90]
    classes = taken(images("classes", range(40), folders=True), clip, 20)
    assert len(set(classes)) == 20
    assert np.ptp(classes) >= 36


def test_the_two_halves_share_no_image(clip: LoadedClip, images: Callable[..., Path]) -> None:
    folder = images("flat", range(21))
    halves = [taken(folder, clip, 50, half) for half in (0, 1)]
    assert sorted([*halves[0], *halves[1]]) == list(range(21))


def test_int8_is_not_checked_on_the_images_that_it_was_calibrated_on(
    clip: LoadedClip, images: Callable[..., Path]
) -> None:
    run = RunFacts(train_data=(str(images("train", range(30))),))
    checked, originals = checked_images(clip, None, run)
    calibrated = numbers_of(calibration_images(clip, None, run))
    assert set(numbers_of(checked)) & set(calibrated) == set()
    assert len(checked) + len(calibrated) == 30
    assert len(originals) == 8
    fitted = {fitted_picture(each, clip).tobytes() for each in originals}
    assert fitted <= {each.permute(1, 2, 0).contiguous().numpy().tobytes() for each in checked}


def test_each_data_set_calibrates_its_share(
    clip: LoadedClip, images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    most = CALIBRATION_IMAGES
    first, second = images("a", range(2 * most)), images("b", range(2 * most, 4 * most))
    run = RunFacts(train_data=(str(first), "nowhere/that/exists", str(second)))
    found = numbers_of(calibration_images(clip, None, run))
    assert sum(number >= 2 * most for number in found) == len(found) / 2
    assert f"calibrated on 86 images of {second}" in capsys.readouterr().out


def test_without_images_there_is_noise_in_files_of_several_shapes(clip: LoadedClip) -> None:
    pixels, originals = checked_images(clip, None, RunFacts())
    assert pixels.shape == (CHECKED_IMAGES // 4, 3, 48, 48)
    assert len(originals) == 3
    assert len({fitted_picture(each, clip).tobytes() for each in originals}) == 3


def test_an_export_of_other_classes_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    expected = torch.eye(4)
    show_parities({"classifier": compare("probabilities", expected.flip(0), expected)})
    printed = capsys.readouterr().out
    assert "same top-1 0.0 %" in printed
    assert "classifier: 100 % of 4 images get another class than PyTorch gives them" in printed
