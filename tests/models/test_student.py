"""Students: what they share with the teacher, which backbones work, and from which weights they start."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from hub_cache import fill_hub_cache, go_offline
from safetensors.torch import save_file

from beamclip.errors import InputError
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.pixels import Preprocessing, normalise_pixels
from beamclip.models.student import (
    StudentConfig,
    attach_text_tower,
    backbone_features,
    build_student,
    drop_text_tower,
    feature_width,
)

TEXTS = ["a photo of a crane", "a drawing of a whale"]
# Networks that end in a hidden layer of their own keep a classifier: it is the projection.
OWN_CLASSIFIERS = {f"{name}.{part}" for name in ("classifier", "head.fc") for part in ("weight", "bias")}
SMALL = StudentConfig(student="test_resnet")


def images_for(clip: LoadedClip) -> torch.Tensor:
    pixels = torch.randint(
        0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return normalise_pixels(pixels, clip.preprocessing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", [{}, {"quick_gelu": True}, {"custom_text": True}, {"init_logit_bias": -10.0}]
)
def test_the_text_tower_and_logit_scale_are_the_teachers(
    tmp_path: Path, micro_config: dict[str, Any], variant: dict[str, Any]
) -> None:
    (tmp_path / "teacher.json").write_text(json.dumps({**micro_config, **variant}))
    teacher = new_clip(tmp_path / "teacher.json", seed=0)
    with torch.no_grad():
        teacher.model.logit_scale.fill_(3.5)
    student = build_student(SMALL, teacher, seed=1)
    tokens = teacher.tokenizer(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(student.model.encode_text(tokens), teacher.model.encode_text(tokens))
    assert student.model.logit_scale == 3.5
    assert torch.equal(student.tokenizer(TEXTS), tokens)
    for key, value in variant.items():
        assert student.model_cfg[key] == value


def test_only_the_image_tower_trains_and_the_teacher_is_untouched(micro_clip: LoadedClip) -> None:
    before = {key: value.clone() for key, value in micro_clip.model.state_dict().items()}
    student = build_student(SMALL, micro_clip, seed=0)
    for name, parameter in student.model.named_parameters():
        assert parameter.requires_grad == name.startswith("visual.")
    assert student.model.visual.training
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in micro_clip.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("config", ["tiny-vit", "tiny-msclip"])
def test_a_student_does_without_its_text_tower_for_a_time(config: str) -> None:
    teacher = new_clip(config, seed=0)
    student = build_student(SMALL, teacher, seed=0)
    drop_text_tower(student)
    kept = [name for name, value in student.model.named_parameters() if value.numel()]
    assert kept == [f"visual.{name}" for name, _ in student.model.visual.named_parameters()]
    with torch.no_grad():
        assert student.model.visual(images_for(student)).shape == (2, teacher.embed_dim)
        attach_text_tower(student, teacher)
        tokens = teacher.tokenizer(TEXTS)
        torch.testing.assert_close(student.model.encode_text(tokens), teacher.model.encode_text(tokens))
    before, after = teacher.model.state_dict(), student.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("visual."))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "features"),
    [
        ("resnet10t", 32, 512),
        ("convnext_atto", 32, 320),
        ("vit_tiny_patch16_224", 224, 192),  # one position grid: pixels are resized to it
        ("mobilenetv4_conv_small", 32, 1280),  # ends in a hidden layer of its own
    ],
)
def test_an_exported_student_of_each_family_is_the_same_in_plain_open_clip(
    tmp_path: Path, micro_clip: LoadedClip, backbone: str, size: int, features: int
) -> None:
    student = build_student(StudentConfig(student=backbone), micro_clip, seed=0)
    student.model.eval()
    directory = write_open_clip_dir(student, tmp_path / "student")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    images = images_for(student)
    with torch.no_grad():
        expected = student.model.encode_image(images)
        torch.testing.assert_close(model.eval().encode_image(images), expected, atol=1e-5, rtol=0)
        assert backbone_features(student.model.visual, images).shape == (2, features)
    assert expected.shape == (2, micro_clip.embed_dim)
    assert student.image_size == size


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_head_maps_backbone_features_to_the_embedding(micro_clip: LoadedClip, head: Any) -> None:
    student = build_student(StudentConfig(student="test_resnet", student_head=head), micro_clip, seed=0)
    model = student.model.eval()
    images = images_for(student)
    with torch.no_grad():
        features = backbone_features(model.visual, images)
        assert torch.equal(model.visual.head(features), model.encode_image(images))
    assert ("head.mlp.fc2.weight" in model.visual.state_dict()) == (head == "mlp")


def test_the_classifier_is_the_head_of_networks_with_a_hidden_layer_of_their_own(
    micro_clip: LoadedClip,
) -> None:
    student = build_student(StudentConfig(student="test_mambaout"), micro_clip, seed=0)
    model = student.model.eval()
    images = images_for(student)
    with torch.no_grad():
        features = backbone_features(model.visual, images)
        assert torch.equal(model.visual.trunk.get_classifier()(features), model.encode_image(images))
    assert feature_width(student.image_tower) == features.shape[1]


def test_features_of_an_open_clip_transformer_are_those_before_its_projection(micro_clip: LoadedClip) -> None:
    model = micro_clip.model
    images = images_for(micro_clip)
    with torch.no_grad():
        features = backbone_features(model.visual, images)
        torch.testing.assert_close(features @ model.visual.proj, model.encode_image(images))
    assert features.shape == (2, 64)


def test_the_width_of_features_is_found_without_running_the_student(micro_clip: LoadedClip) -> None:
    student = build_student(SMALL, micro_clip, seed=0)
    before = {name: value.clone() for name, value in student.model.visual.state_dict().items()}
    assert feature_width(student.image_tower) == 96
    assert feature_width(micro_clip.image_tower) == 64
    assert student.model.visual.training
    torch.testing.assert_close(dict(student.model.visual.state_dict()), before, rtol=0, atol=0)


def test_features_of_a_clip_resnet_are_its_embedding(tmp_path: Path, micro_config: dict[str, Any]) -> None:
    micro_config["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
    (tmp_path / "rn.json").write_text(json.dumps(micro_config))
    clip = new_clip(tmp_path / "rn.json", seed=0)
    images = images_for(clip)
    with torch.no_grad():
        assert torch.equal(backbone_features(clip.model.visual, images), clip.model.encode_image(images))


def test_gradients_reach_the_backbone_through_its_features(micro_clip: LoadedClip) -> None:
    student = build_student(SMALL, micro_clip, seed=0)
    backbone_features(student.model.visual, images_for(student)).sum().backward()
    assert all(parameter.grad is not None for parameter in student.model.visual.trunk.parameters())


def test_a_seed_decides_the_students_weights(micro_clip: LoadedClip) -> None:
    torch.manual_seed(1)
    first = build_student(SMALL, micro_clip, seed=7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = build_student(SMALL, micro_clip, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint == second.fingerprint
    assert build_student(SMALL, micro_clip, seed=8).fingerprint != first.fingerprint


def test_image_size_mean_and_std_are_the_teachers_unless_asked_otherwise(
    tmp_path: Path, micro_config: dict[str, Any]
) -> None:
    micro_config["preprocess"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "teacher.json").write_text(json.dumps(micro_config))
    teacher = new_clip(tmp_path / "teacher.json", seed=0)
    student = build_student(SMALL, teacher, seed=0)
    assert student.preprocessing == teacher.preprocessing
    larger = build_student(StudentConfig(student="test_resnet", student_image_size=64), teacher, seed=0)
    assert larger.image_size == larger.model.visual.image_size[0] == 64
    assert larger.preprocessing.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("backbone", ["test_resnet", "mobilenetv3_small_050"])
def test_pretrained_brings_timms_weights_mean_and_std(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_clip: LoadedClip, backbone: str
) -> None:
    go_offline(monkeypatch, tmp_path)
    weights = fill_hub_cache(tmp_path, backbone, seed=3)
    student = build_student(StudentConfig(student=backbone, pretrained=True), micro_clip, seed=0)
    trunk = student.model.visual.trunk.state_dict()
    loaded = {key for key in trunk if torch.equal(trunk[key], weights[key])}
    assert set(trunk) - loaded <= OWN_CLASSIFIERS
    assert student.preprocessing.mean == timm.get_pretrained_cfg(backbone).mean
    assert student.model_cfg["vision_cfg"]["timm_model_pretrained"] is False


def test_pretrained_weights_out_of_reach_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_clip: LoadedClip
) -> None:
    go_offline(monkeypatch, tmp_path)
    with pytest.raises(
        InputError, match=r"student test_resnet: timm's pretrained weights .* init_checkpoint"
    ):
        build_student(StudentConfig(student="test_resnet", pretrained=True), micro_clip, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q.", "visual.trunk."])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_mambaout"])
def test_a_backbone_starts_from_a_checkpoint_whatever_its_prefix_and_classifier(
    tmp_path: Path, micro_clip: LoadedClip, backbone: str, prefix: str
) -> None:
    torch.manual_seed(3)
    weights = timm.create_model(backbone, num_classes=10).state_dict()
    file = tmp_path / "ssl.pt"
    torch.save({"state_dict": {prefix + key: value for key, value in weights.items()}}, file)
    config = StudentConfig(student=backbone, init_checkpoint=file)
    student = build_student(config, micro_clip, seed=0)
    trunk = student.model.visual.trunk.state_dict()
    different = {key for key in trunk if not torch.equal(trunk[key], weights[key])}
    assert different <= OWN_CLASSIFIERS


IMAGENET = Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OTHER = Preprocessing(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "beside", "expected"),
    [
        ({}, {}, IMAGENET),
        ({"init_pixels": "inception"}, {}, HALF),
        ({"init_mean": (0.1, 0.2, 0.3), "init_std": (0.4, 0.5, 0.6)}, {}, OTHER),
        ({}, {"open_clip_config.json": {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}}, HALF),
        ({}, {"config.json": {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}}, HALF),
        (
            {"init_pixels": "imagenet"},
            {"config.json": {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}},
            IMAGENET,
        ),
    ],
)
def test_a_student_takes_the_pixels_that_its_first_weights_are_used_to(
    tmp_path: Path,
    micro_clip: LoadedClip,
    options: dict[str, Any],
    beside: dict[str, Any],
    expected: Preprocessing,
) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "ssl.pt")
    for name, content in beside.items():
        (tmp_path / name).write_text(json.dumps(content))
    config = StudentConfig(student="test_resnet", init_checkpoint=tmp_path / "ssl.pt", **options)
    student = build_student(config, micro_clip, seed=0)
    assert student.preprocessing == expected
    # What open_clip's users normalise by comes from the exported config.
    exported = json.loads(
        (write_open_clip_dir(student, tmp_path / "out") / "open_clip_config.json").read_text()
    )
    assert exported["preprocess_cfg"]["mean"] == list(expected.mean)
    assert exported["preprocess_cfg"]["std"] == list(expected.std)


def test_a_student_may_keep_the_teachers_pixels(tmp_path: Path, micro_clip: LoadedClip) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "ssl.pt")
    config = StudentConfig(student="test_resnet", init_checkpoint=tmp_path / "ssl.pt", init_pixels="teacher")
    assert build_student(config, micro_clip, seed=0).preprocessing == micro_clip.preprocessing


@pytest.mark.parametrize("key", ["model", "teacher"])
def test_a_backbone_starts_from_the_weights_of_a_self_supervised_run(
    tmp_path: Path, micro_clip: LoadedClip, key: str
) -> None:
    torch.manual_seed(3)
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    state = {f"module._orig_mod.backbone.{name}": value for name, value in weights.items()}
    content = {key: state, "student": {}, "optimizer": {"state": {}}, "args": Namespace(lr=1.0), "epoch": 3}
    torch.save(content, tmp_path / "dino.ckpt")
    config = StudentConfig(student="test_resnet", init_checkpoint=tmp_path / "dino.ckpt")
    trunk = build_student(config, micro_clip, seed=0).model.visual.trunk.state_dict()
    assert all(torch.equal(trunk[name], value) for name, value in weights.items())


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path, micro_clip: LoadedClip) -> None:
    file = tmp_path / "ssl.safetensors"
    save_file(timm.create_model("test_convnext").state_dict(), file)
    config = StudentConfig(student="test_resnet", init_checkpoint=file)
    with pytest.raises(
        InputError,
        match=r"ssl\.safetensors: is not a checkpoint of test_resnet: .*\d+ of \d+ are not in the file",
    ):
        build_student(config, micro_clip, seed=0)


def test_a_checkpoint_of_a_wider_backbone_is_refused_with_shapes(
    tmp_path: Path, micro_clip: LoadedClip
) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    weights["conv1.0.weight"] = torch.zeros(48, 3, 3, 3)
    torch.save(weights, tmp_path / "wide.pt")
    config = StudentConfig(student="test_resnet", init_checkpoint=tmp_path / "wide.pt")
    with pytest.raises(
        InputError, match=r"1 of \d+ tensors differ in shape \(conv1\.0\.weight is \[48, 3, 3, 3\]"
    ):
        build_student(config, micro_clip, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "messages"),
    [
        (StudentConfig(student="vit_tiny"), ["timm has no such model", "vit_tiny_patch16_224"]),
        (StudentConfig(student="resnet81"), ["student 'resnet81'", "Did you mean", "resnet18"]),
        (StudentConfig(student="zzz"), ["student 'zzz'", "timm.list_models() lists all"]),
        (
            StudentConfig(student="test_vit_relpos", student_image_size=96),
            [
                "student test_vit_relpos: cannot take images of 96 x 96",
                "builds it for 160 x 160",
                "such as resnet18",
            ],
        ),
        (
            StudentConfig(student="test_mambaout", student_head="mlp"),
            ["student test_mambaout", "hidden layer before", "student_head linear", "such as resnet18"],
        ),
        (
            StudentConfig(pretrained=True, init_checkpoint=Path("ssl.pt")),
            ["pretrained and init_checkpoint (ssl.pt) are both given", "Drop one"],
        ),
        (StudentConfig(init_checkpoint=Path("absent.pt")), ["absent.pt: no such file"]),
        (StudentConfig(init_pixels="imagenet"), ["no effect without init_checkpoint"]),
        (
            StudentConfig(init_checkpoint=Path("ssl.pt"), init_mean=(0.5, 0.5, 0.5)),
            ["init_mean and init_std", "Give both"],
        ),
        (
            StudentConfig(
                init_checkpoint=Path("ssl.pt"), init_mean=(123.7, 116.3, 103.5), init_std=(58.4, 57.1, 57.4)
            ),
            ["init_mean (123.7, 116.3, 103.5)", "scale 0..1", "Divide by 255"],
        ),
    ],
)
def test_a_student_that_cannot_be_is_refused_with_what_to_do(
    micro_clip: LoadedClip, config: StudentConfig, messages: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        build_student(config, micro_clip, seed=0)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.slow
def test_the_suggested_backbones_work_at_any_size_and_with_any_head(micro_clip: LoadedClip) -> None:
    from beamclip.models import student

    for backbone in student._ANY_SIZE_AND_HEAD:
        vision_cfg, cause = student._try(backbone, "mlp", 40, micro_clip.embed_dim)
        assert vision_cfg, cause
