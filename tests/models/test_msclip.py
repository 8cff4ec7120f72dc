"""MS-CLIP: what is shared, how large it is, and that it is used like any other open_clip model."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beamclip.errors import InputError
from beamclip.export.open_clip_dir import write_open_clip_dir
from beamclip.models.clip import LoadedClip, build_open_clip, load_clip, new_clip
from beamclip.models.config import StudentConfig
from beamclip.models.model_config import find_config
from beamclip.models.msclip import SpecialisedVision
from beamclip.models.student import backbone_features, build_student
from beamclip.training.optim import shared_parameters

NAMES = ("tiny-msclip", "tiny-msclip-s")
TEXTS = ["a red square", "a hollow star"]


def images(size: int = 48) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def parameters(model: nn.Module) -> float:
    """Millions, each tensor once."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "millions"),
    [("msclip-b32", 126.29), ("msclip-s-b32", 132.41), ("msclip-b16", 124.63), ("msclip-s-b16", 132.50)],
)
def test_parameters_are_as_many_as_published(name: str, millions: float) -> None:
    config, _ = find_config(name)
    with torch.device("meta"):
        assert parameters(build_open_clip(config, where=name)) == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("text_width", "millions"), [(512, 151.28), (768, 211.30)])
def test_separate_towers_are_as_large_as_published(text_width: int, millions: float) -> None:
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    config["text_cfg"].update(width=text_width, heads=text_width // 64)
    with torch.device("meta"):
        assert parameters(build_open_clip(config, where="ViT-B-32")) == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("name", "first"), [("tiny-msclip", 0), ("tiny-msclip-s", 1)])
def test_attention_and_feed_forward_are_shared_and_nothing_else(name: str, first: int) -> None:
    model = new_clip(name, seed=0).model
    blocks = model.text.transformer.resblocks[first:]
    want = {id(p) for block in blocks for layer in (block.attn, block.mlp) for p in layer.parameters()}
    assert shared_parameters(model) == want
    assert len(want) == 8 * (6 - first)


@pytest.mark.parametrize(
    ("shared", "modules"),
    [
        (["attention"], {"attn"}),
        (["feed_forward"], {"mlp"}),
        (["attention", "feed_forward", "norms"], {"attn", "mlp", "ln_1", "ln_2"}),
    ],
)
def test_a_config_says_what_the_blocks_share(shared: list[str], modules: set[str], tmp_path: Path) -> None:
    clip = new_clip("tiny-msclip", seed=0, msclip={"shared": shared})
    names = [
        name
        for name, parameter in clip.model.text.transformer.resblocks.named_parameters()
        if id(parameter) in shared_parameters(clip.model)
    ]
    assert {name.split(".")[1] for name in names} == modules
    assert {name.split(".")[0] for name in names} == {str(number) for number in range(6)}
    write_open_clip_dir(clip, tmp_path)
    reloaded = load_clip(str(tmp_path))
    assert len(shared_parameters(reloaded.model)) == len(names)


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_tensor_moves_under_the_loss_of_either_tower(name: str) -> None:
    clip = new_clip(name, seed=0)
    weight = clip.model.visual.transformer.resblocks[-1].mlp.c_fc.weight
    for loss in (
        clip.model.encode_image(images()).square().sum(),
        clip.model.encode_text(clip.tokenizer(TEXTS)).square().sum(),
    ):
        (gradient,) = torch.autograd.grad(loss, weight)
        assert gradient.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_export_embeds_the_same_and_still_shares(name: str, tmp_path: Path) -> None:
    clip = new_clip(name, seed=0)
    reloaded = load_clip(str(write_open_clip_dir(clip, tmp_path / "model")))
    assert_same_embeddings(clip, reloaded)
    assert len(shared_parameters(reloaded.model)) == len(shared_parameters(clip.model))


def assert_same_embeddings(first: LoadedClip, second: LoadedClip) -> None:
    tokens = first.tokenizer(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(first.model.encode_image(images()), second.model.encode_image(images()))
        torch.testing.assert_close(first.model.encode_text(tokens), second.model.encode_text(tokens))


def test_msclip_computes_what_two_towers_with_equal_weights_compute() -> None:
    clip = new_clip("tiny-msclip", seed=0)
    config = {key: value for key, value in clip.model_cfg.items() if key != "msclip"}
    apart = build_open_clip({**config, "custom_text": True}, where="apart")
    apart.load_state_dict(clip.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(clip.model.encode_image(images()), apart.encode_image(images()))
    assert parameters(apart) > parameters(clip.model)


def test_open_clip_alone_loads_msclip_as_two_towers(tmp_path: Path) -> None:
    clip = new_clip("tiny-msclip", seed=0)
    out = write_open_clip_dir(clip, tmp_path / "model")
    plain = open_clip.create_model(f"local-dir:{out}")
    assert not shared_parameters(plain)
    tokens = clip.tokenizer(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(plain.encode_image(images()), clip.model.encode_image(images()))
        torch.testing.assert_close(plain.encode_text(tokens), clip.model.encode_text(tokens))


def test_open_clip_alone_refuses_msclip_s(tmp_path: Path) -> None:
    out = write_open_clip_dir(new_clip("tiny-msclip-s", seed=0), tmp_path / "model")
    with pytest.raises(TypeError, match="msclip"):
        open_clip.create_model(f"local-dir:{out}")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_student_takes_its_text_tower(name: str, tmp_path: Path) -> None:
    teacher = new_clip(name, seed=0)
    student = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    tokens = teacher.tokenizer(TEXTS)
    student.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(student.model.encode_text(tokens), teacher.model.encode_text(tokens))
    out = write_open_clip_dir(student, tmp_path / "student")
    plain = open_clip.create_model(f"local-dir:{out}")
    with torch.no_grad():
        torch.testing.assert_close(plain.encode_text(tokens), teacher.model.encode_text(tokens))


@pytest.mark.slow
@pytest.mark.parametrize("teacher_name", ["tiny-resnet18", "tiny-msclip-s"])
@pytest.mark.parametrize("name", NAMES)
def test_its_image_tower_is_a_student(name: str, teacher_name: str, tmp_path: Path) -> None:
    teacher = new_clip(teacher_name, seed=0)
    student = build_student(StudentConfig(student=name), teacher, seed=1)
    trained = {key for key, value in student.model.named_parameters() if value.requires_grad}
    assert trained == {f"visual.{key}" for key, _ in student.model.visual.named_parameters()}
    assert not shared_parameters(student.model)
    out = str(write_open_clip_dir(student, tmp_path / "student"))
    # MS-CLIP's image tower is a ViT, which open_clip alone loads; MS-CLIP-S's is ours.
    plain = name == "tiny-msclip"
    loaded = open_clip.create_model(f"local-dir:{out}") if plain else load_clip(out).model
    student.model.eval()
    tokens = teacher.tokenizer(TEXTS)
    with torch.no_grad():
        embeddings = student.model.encode_image(images())
        torch.testing.assert_close(loaded.encode_image(images()), embeddings)
        torch.testing.assert_close(loaded.encode_text(tokens), teacher.model.encode_text(tokens))
        features = backbone_features(student.model.visual, images())
        torch.testing.assert_close(features @ student.model.visual.proj, embeddings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_head": "mlp"}, "has a projection of its own"),
        ({"pretrained": True}, "starts from random weights"),
        ({"student_image_size": 50}, "50 x 50 pixels cannot be cut into patches of 8"),
    ],
)
def test_a_student_tower_that_cannot_be_had(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_student(StudentConfig(student="tiny-msclip-s", **change), new_clip("tiny-vit", seed=0), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_blocks_compile_as_one_graph_and_compute_the_same(name: str) -> None:
    model = new_clip(name, seed=0).model
    tokens = torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(1))
    mask = model.text.attn_mask
    for tower, inputs in ((model.visual, (tokens,)), (model.text, (tokens, None, None, mask))):
        for block in tower.transformer.resblocks:
            # With fullgraph the first break raises.
            compiled = torch.compile(block, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(*inputs), block(*inputs))


@pytest.mark.slow
def test_both_towers_compile_as_one_graph() -> None:
    model = new_clip("tiny-msclip-s", seed=0).model
    tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    for tower, inputs in ((model.visual, images()), (model.text, tokens)):
        compiled = torch.compile(tower, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), tower(inputs))


@pytest.mark.parametrize(
    ("patch", "kernels"), [(32, [16, 8, 4, 2, 1]), (16, [8, 4, 2, 1, 1]), (8, [4, 2, 1, 1, 1])]
)
def test_each_stage_reaches_the_grid_of_tokens(patch: int, kernels: list[int]) -> None:
    vision_cfg = {"image_size": 64, "patch_size": patch, "width": 64, "layers": 12, "head_width": 64}
    tower = SpecialisedVision(16, vision_cfg, lateral_blocks=(2, 4, 6, 8, 10), quick_gelu=True)
    assert [adapter.lateral[0].kernel_size[0] for adapter in tower.adapters] == kernels
    assert tower(images(64)).shape == (2, 16)
    assert tower(images(96)).shape == (2, 16)


def test_the_parallel_branch_sees_the_image_and_changes_the_embedding() -> None:
    tower = new_clip("tiny-msclip-s", seed=0).model.visual
    with torch.no_grad():
        before = tower(images())
        for adapter in tower.adapters:
            adapter.lateral[2].weight.zero_()
        assert (tower(images()) - before).abs().max() > 1e-3


def test_recomputing_blocks_leaves_the_gradients_as_they_are() -> None:
    model = new_clip("tiny-msclip-s", seed=0).model
    tower = model.visual
    # Running statistics would move with each pass.
    tower.train().apply(lambda module: module.eval() if isinstance(module, nn.BatchNorm2d) else None)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        loss = F.normalize(tower(images()), dim=1)[0, 0]
        gradients.append(torch.autograd.grad(loss, tower.class_embedding)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "values", "message"),
    [
        ("text_cfg", {"width": 128}, "vision_cfg.width is 192, text_cfg.width is 128"),
        ("text_cfg", {"layers": 3}, "vision_cfg.layers is 6, text_cfg.layers is 3"),
        ("text_cfg", {"heads": 6}, "vision_cfg makes 3 heads"),
        ("vision_cfg", {"patch_size": 12}, "image_size 48 with patch_size 12"),
        ("msclip", {"lateral_blocks": [2, 6]}, r"lateral_blocks \[2, 6\]"),
        ("msclip", {"halved": True}, "unknown halved"),
        ("msclip", {"shared": ["tokens"]}, "Give true, false, or a list of attention"),
        ("msclip", {"shared": []}, "Give true, false, or a list of attention"),
        ("msclip", {"init": "zeros"}, "init is 'zeros'"),
    ],
)
def test_towers_that_cannot_share_are_refused(tower: str, values: dict[str, Any], message: str) -> None:
    config = new_clip("tiny-msclip-s", seed=0).model_cfg
    config = {**config, tower: {**config[tower], **values}}
    with pytest.raises(InputError, match=f"own.json: msclip: .*{message}"):
        build_open_clip(config, where="own.json")
