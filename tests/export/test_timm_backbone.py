"""The image tower as a backbone that timm loads by itself."""

from pathlib import Path

import pytest
import timm
import torch

from beamclip.errors import InputError
from beamclip.export.timm_backbone import load_both_ways, write_timm_backbone
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.student import StudentConfig, backbone_features, build_student


@pytest.fixture(scope="module")
def teacher() -> LoadedClip:
    return new_clip("tiny-vit", seed=0)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_mambaout"])
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
    settings = timm.data.resolve_data_config(model=network)
    assert tuple(settings["input_size"]) == (3, 48, 48)
    assert tuple(settings["mean"]) == built.preprocessing.mean


def test_an_image_tower_that_is_not_timms_has_no_timm_export(tmp_path: Path, teacher: LoadedClip) -> None:
    with pytest.raises(InputError, match="open_clip's own VisionTransformer, not a timm network"):
        write_timm_backbone(teacher, tmp_path / "backbone")
