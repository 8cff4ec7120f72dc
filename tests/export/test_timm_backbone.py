"""The image tower as a backbone that timm loads by itself."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from beamclip.errors import FailedRunError, InputError
from beamclip.export.pictures import fitted_picture
from beamclip.export.timm_backbone import load_both_ways, write_timm_backbone
from beamclip.models.clip import LoadedClip, new_clip, normalise_pixels
from beamclip.models.student import StudentConfig, backbone_features, build_student


@pytest.fixture(scope="module")
def teacher() -> LoadedClip:
    return new_clip("tiny-vit", seed=0)


SETTINGS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@pytest.mark.parametrize("backbone", ["test_resnet", "test_mambaout", "test_vit"])
def test_timm_loads_the_backbone_and_gives_its_features(
    tmp_path: Path, teacher: LoadedClip, backbone: str
) -> None:
    built = build_student(StudentConfig(student=backbone), teacher, seed=0)
    built.model.eval()
    directory = write_timm_backbone(built, tmp_path / "backbone")
    network = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(images), backbone_features(built.model.visual, images))
    for features in load_both_ways(directory, backbone, images):
        torch.testing.assert_close(features, backbone_features(built.model.visual, images))
    config = json.loads((directory / "config.json").read_text())
    checkpoint = timm.create_model(
        backbone,
        num_classes=0,
        checkpoint_path=directory / "model.safetensors",
        pretrained_cfg_overlay=config["pretrained_cfg"],
    )
    expected = ((3, 48, 48), built.preprocessing.mean, built.preprocessing.std, "bicubic", 1.0, "center")
    for loaded in (network, checkpoint):
        settings = timm.data.resolve_model_data_config(loaded)
        found = (settings[name] for name in SETTINGS)
        assert tuple(tuple(each) if isinstance(each, list) else each for each in found) == expected


def test_a_backbone_of_fixed_size_is_loaded_for_it(tmp_path: Path, teacher: LoadedClip) -> None:
    config = StudentConfig(student="vit_tiny_patch16_384", student_image_size=384)
    built = build_student(config, teacher, seed=0)
    built.model.eval()
    images = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(1))
    directory = write_timm_backbone(built, tmp_path / "backbone")
    with torch.no_grad():
        for features in load_both_ways(directory, "vit_tiny_patch16_384", images):
            torch.testing.assert_close(features, backbone_features(built.model.visual, images))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_timm_makes_the_pixels_of_evaluation(tmp_path: Path, teacher: LoadedClip, mode: str) -> None:
    built = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    built = replace(built, preprocess_cfg={**built.preprocess_cfg, "resize_mode": mode})
    directory = write_timm_backbone(built, tmp_path / "backbone")
    network = timm.create_model(f"local-dir:{directory}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    ramp = np.linspace(0, 255, 96 * 64 * 3).reshape(64, 96, 3).astype(np.uint8)
    picture, file = Image.fromarray(ramp), io.BytesIO()
    picture.save(file, "PNG")
    pixels = torch.from_numpy(fitted_picture(file.getvalue(), built).copy()).permute(2, 0, 1)[None]
    expected = normalise_pixels(pixels, built.preprocessing)[0]
    found = transform(picture)
    rows = slice(9, 39) if mode == "longest" else slice(None)  # timm's margins have another colour
    torch.testing.assert_close(found[:, rows], expected[:, rows], atol=0.03, rtol=0)


def test_the_first_convolution_takes_other_channels(tmp_path: Path, teacher: LoadedClip) -> None:
    built = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    directory = write_timm_backbone(built, tmp_path / "backbone")
    grey = timm.create_model(f"local-dir:{directory}", pretrained=True, in_chans=1).eval()
    with torch.no_grad():
        assert grey(torch.zeros(1, 1, 48, 48)).shape == (1, grey.num_features)


def test_what_timm_cannot_load_is_said_in_a_line(tmp_path: Path, teacher: LoadedClip) -> None:
    built = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    directory = write_timm_backbone(built, tmp_path / "backbone")
    with pytest.raises(FailedRunError, match="timm cannot use the backbone test_vit that was made"):
        load_both_ways(directory, "test_vit", torch.zeros(1, 3, 48, 48))


def test_an_image_tower_that_is_not_timms_has_no_timm_export(tmp_path: Path, teacher: LoadedClip) -> None:
    with pytest.raises(InputError, match="open_clip's own VisionTransformer, not a timm network"):
        write_timm_backbone(teacher, tmp_path / "backbone")
