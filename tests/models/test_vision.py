"""Teachers of vision only: which weights they have, what they see, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from hub_cache import fill_hub_cache, go_offline
from safetensors.torch import save_file
from torch import nn

from beamclip.errors import InputError
from beamclip.models.clip import load_clip
from beamclip.models.pixels import normalise_pixels
from beamclip.models.teacher import ImageTeacher
from beamclip.models.vision import load_vision_teacher


def backbone(name: str = "test_vit", seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name).eval()


def plain(network: nn.Module, folder: Path) -> Path:
    save_file(network.state_dict(), folder / "plain.safetensors")
    return folder / "plain.safetensors"


def of_dino(network: nn.Module, folder: Path) -> Path:
    """As DINO's training writes it: student and teacher, with DDP's prefix."""
    state = {f"module.backbone.{name}": value for name, value in network.state_dict().items()}
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"student": zeros, "teacher": state, "epoch": 3}, folder / "dino.pth")
    return folder / "dino.pth"


@pytest.mark.parametrize("written", [plain, of_dino])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_checkpoint_gives_the_features_before_its_classifier(
    tmp_path: Path, name: str, written: Callable[[nn.Module, Path], Path]
) -> None:
    network = backbone(name)
    teacher, tower = load_vision_teacher(f"timm:{name}/{written(network, tmp_path)}")
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    images = normalise_pixels(pixels, tower.preprocessing)
    assert images.shape[-1] == teacher.image_size == 160
    assert teacher.preprocessing.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        features = network.forward_head(network.forward_features(images), pre_logits=True)
    want = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ImageTeacher(tower).encode_image(pixels), want, rtol=1e-4, atol=1e-5)
    assert teacher.width == features.shape[1]
    assert teacher.name == name


def test_weights_and_input_make_the_fingerprint_and_the_place_does_not(tmp_path: Path) -> None:
    network = backbone()
    state = torch.get_rng_state()
    places = [f"timm:test_vit/{plain(network, tmp_path)}", f"timm:test_vit/{of_dino(network, tmp_path)}"]
    here, there = (load_vision_teacher(place)[0].fingerprint for place in places)
    assert torch.equal(torch.get_rng_state(), state)
    assert here == there
    assert load_vision_teacher(places[0], 80)[0].fingerprint != here
    other = plain(backbone(seed=4), tmp_path)
    assert load_vision_teacher(f"timm:test_vit/{other}")[0].fingerprint != here


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_images_of_another_size_are_taken_if_they_are_asked_for(tmp_path: Path, name: str) -> None:
    file = plain(backbone(name), tmp_path)
    teacher, tower = load_vision_teacher(f"timm:{name}/{file}", 48)
    assert teacher.image_size == tower.preprocessing.size == 48
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    features = ImageTeacher(tower).encode_image(pixels)
    whole = ImageTeacher(load_vision_teacher(f"timm:{name}/{file}")[1]).encode_image(pixels)
    assert features.shape == whole.shape
    assert not torch.allclose(features, whole, atol=1e-3)


def test_without_a_file_a_teacher_has_timms_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"timm:test_vit: timm's pretrained weights .* timm:NAME/FILE"):
        load_vision_teacher("timm:test_vit")
    weights = fill_hub_cache(tmp_path, "test_vit", seed=3)
    _, tower = load_vision_teacher("timm:test_vit")
    loaded = tower.network.state_dict()
    torch.testing.assert_close(dict(loaded), {name: weights[name] for name in loaded})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("open_clip:ViT-B-16/openai", "CLIP models belong to --teacher"),
        ("runs/teacher", "Give timm:NAME or timm:NAME/FILE"),
        ("timm:test_vitt/file.pth", "Did you mean test_vit"),
        ("timm:test_vit.nonsense/file.pth", "Take another backbone or tag"),
        ("timm:test_vit/absent.pth", "absent.pth: no such file"),
        ("timm:test_vit/{resnet}", "is not a checkpoint of test_vit"),
    ],
)
def test_what_is_no_such_teacher_is_refused(tmp_path: Path, address: str, said: str) -> None:
    file = plain(backbone("test_resnet"), tmp_path) if "{resnet}" in address else ""
    with pytest.raises(InputError, match=said):
        load_vision_teacher(address.format(resnet=file))


def test_a_size_that_a_network_does_not_take_is_refused(tmp_path: Path) -> None:
    file = plain(backbone(), tmp_path)
    with pytest.raises(InputError, match=r"images of 8 x 8 pixels .*--vision-image-size"):
        load_vision_teacher(f"timm:test_vit/{file}", 8)


def test_a_backbone_is_no_clip_teacher() -> None:
    with pytest.raises(InputError, match=r"no text tower.*--vision-teachers"):
        load_clip("timm:test_vit")
