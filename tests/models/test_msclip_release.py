"""MS-CLIP-S in the layout of its authors' release: a plain forward pass over the file, and what is loaded."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.models.clip import build_open_clip, load_clip
from beamclip.models.config import StudentConfig
from beamclip.models.model_config import find_config
from beamclip.models.msclip_release import own_names
from beamclip.models.student import build_student
from beamclip.openclip import convert_to_custom_text_state_dict

State = dict[str, Tensor]
LATERAL_BLOCKS = (2, 4, 6, 8, 10)
NAMED = ("msclip-b32", "msclip-b16", "msclip-s-b32", "msclip-s-b16")


@dataclass(frozen=True)
class Size:
    """Sizes of a release's model."""

    patch: int
    image: int = 64
    width: int = 64
    heads: int = 2
    embed: int = 24
    context: int = 12

    @property
    def strides(self) -> list[int]:
        """Of the five convolutions of the stem, and of the parallel branch."""
        return [2, 2, 2, 2, 2 if self.patch == 32 else 1]


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors by their names in the release."""
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection": (size.width, size.embed),
        "positional_embedding": (size.context, size.width),
        "token_embedding.weight": (49408, size.width),
        "visual.class_embedding": (size.width,),
        "visual.positional_embedding": ((size.image // size.patch) ** 2 + 1, size.width),
        "visual.proj": (size.width, size.embed),
    }
    for name in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        found |= norm(name, size.width)
    for layer in range(12):
        found |= block(f"transformer.resblocks.{layer}", size.width)
        if layer > 0:
            found |= block(f"visual.transformer.resblocks.{layer}", size.width)
    return found | stem(size) | branch(size) | adapters(size)


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.in_proj_bias": (3 * width,),
        f"{name}.attn.out_proj.weight": (width, width),
        f"{name}.attn.out_proj.bias": (width,),
        f"{name}.mlp.c_fc.weight": (4 * width, width),
        f"{name}.mlp.c_fc.bias": (4 * width,),
        f"{name}.mlp.c_proj.weight": (width, 4 * width),
        f"{name}.mlp.c_proj.bias": (width,),
        **norm(f"{name}.ln_1", width),
        **norm(f"{name}.ln_2", width),
    }


def stem(size: Size) -> dict[str, tuple[int, ...]]:
    name, width = "visual.transformer.resblocks.0", size.width // 16
    found = {f"{name}.conv1.weight": (width, 3, 3, 3), **batch_norm(f"{name}.bn1", width)}
    for stage in range(4):
        part, before, after = f"{name}.resnet_stage.conv_{stage}", width * 2**stage, width * 2 ** (stage + 1)
        found |= {f"{part}.conv1.weight": (after, before, 3, 3), **batch_norm(f"{part}.bn1", after)}
        found |= {
            f"{part}.downsample.0.weight": (after, before, 1, 1),
            **batch_norm(f"{part}.downsample.1", after),
        }
    return found | {f"{name}.last_conv.weight": (size.width, size.width, 1, 1)}


def branch(size: Size) -> dict[str, tuple[int, ...]]:
    name, width = "visual.transformer.parallel_branch_v", size.width // 16
    found = {f"{name}.0.conv.weight": (width, 3, 3, 3), **batch_norm(f"{name}.0.bn", width)}
    for stage in range(1, 5):
        part = f"{name}.{stage}.resnet_stage.conv_0"
        before, after = width * 2 ** (stage - 1), width * 2**stage
        middle = after // 2
        found |= {
            f"{part}.conv1.weight": (middle, before, 1, 1),
            f"{part}.conv2.weight": (middle, middle, 3, 3),
            f"{part}.conv3.weight": (after, middle, 1, 1),
            f"{part}.residual_conv.weight": (after, before, 1, 1),
            **batch_norm(f"{part}.bn1", middle),
            **batch_norm(f"{part}.bn2", middle),
            **batch_norm(f"{part}.bn3", after),
            **batch_norm(f"{part}.residual_bn", after),
        }
    return found


def adapters(size: Size) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for stage in range(5):
        part, channels = f"visual.transformer.parallel_lateral_adapter.{stage}", size.width // 16 * 2**stage
        kernel = size.patch // math.prod(size.strides[: stage + 1])
        found |= {
            f"{part}.top2bottom_dw_conv.conv.weight": (channels, 1, kernel, kernel),
            f"{part}.top2bottom_pw_conv.conv.weight": (size.width, channels, 1, 1),
            f"{part}.bottom_dw_conv.conv.weight": (size.width, 1, 3, 3),
            **batch_norm(f"{part}.top2bottom_dw_conv.bn", channels),
            **batch_norm(f"{part}.bottom_dw_conv.bn", size.width),
            **norm(f"{part}.ln_adapt", size.width),
        }
    return found


def random_state(size: Size) -> State:
    """Random tensors in the release's layout: also statistics, and both copies of what is shared."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for name, shape in shapes(size).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(1000)
        elif name.endswith("running_var"):
            values = 0.5 + torch.rand(shape, generator=generator)
        elif name.endswith(".weight") and len(shape) == 1:
            values = 1 + 0.2 * values
        elif len(shape) > 1:
            values = values / math.sqrt(math.prod(shape[1:]))
        else:
            values = 0.2 * values
        state[name] = values
    for name in [name for name in state if name.startswith("visual.transformer.resblocks.")]:
        if ".attn." in name or ".mlp." in name:
            state[name] = state[name.removeprefix("visual.")].clone()
    return state


def image_embeddings(state: State, images: Tensor, size: Size) -> Tensor:
    """Unit embeddings [B, D] of images, by functions over the release's tensors."""
    patches = stem_output(state, images, size)
    grid = patches.shape[2:]
    first = state["visual.class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([first, patches.flatten(2).mT], dim=1) + state["visual.positional_embedding"]
    tokens = layer_norm(state, "visual.ln_pre", tokens)
    features = images
    for layer in range(1, 12):
        if layer in LATERAL_BLOCKS:
            stage = LATERAL_BLOCKS.index(layer)
            features = branch_stage(state, features, stage, size)
            tokens = merged(state, tokens, features, stage, grid)
        tokens = attend(state, f"visual.transformer.resblocks.{layer}", tokens, size.heads)
    return F.normalize(layer_norm(state, "visual.ln_post", tokens[:, 0]) @ state["visual.proj"], dim=1)


def text_embeddings(state: State, tokens: Tensor, size: Size) -> Tensor:
    """Unit embeddings [B, D] of token ids, by functions over the release's tensors."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    mask = torch.full((size.context, size.context), -torch.inf).triu(1)
    for layer in range(12):
        x = attend(state, f"transformer.resblocks.{layer}", x, size.heads, mask)
    ends = x[torch.arange(len(x)), tokens.argmax(dim=1)]
    return F.normalize(layer_norm(state, "ln_final", ends) @ state["text_projection"], dim=1)


def layer_norm(state: State, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def batch_normed(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def attend(state: State, name: str, x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """One block of a transformer: attention and feed-forward layer, each after its norm and residual."""
    normed = layer_norm(state, f"{name}.ln_1", x)
    joint = normed @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
    queries, keys, values = (part.unflatten(2, (heads, -1)) for part in joint.chunk(3, dim=2))
    scores = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / math.sqrt(queries.shape[-1])
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, values).flatten(2)
    x = x + mixed @ state[f"{name}.attn.out_proj.weight"].T + state[f"{name}.attn.out_proj.bias"]
    hidden = layer_norm(state, f"{name}.ln_2", x) @ state[f"{name}.mlp.c_fc.weight"].T
    hidden = hidden + state[f"{name}.mlp.c_fc.bias"]
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return x + hidden @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]


def stem_output(state: State, images: Tensor, size: Size) -> Tensor:
    name = "visual.transformer.resblocks.0"
    x = F.conv2d(images, state[f"{name}.conv1.weight"], stride=size.strides[0], padding=1)
    x = batch_normed(state, f"{name}.bn1", x).relu()
    for stage, stride in enumerate(size.strides[1:]):
        part = f"{name}.resnet_stage.conv_{stage}"
        main = F.conv2d(x, state[f"{part}.conv1.weight"], stride=stride, padding=1)
        shortcut = F.conv2d(x, state[f"{part}.downsample.0.weight"], stride=stride)
        x = batch_normed(state, f"{part}.bn1", main) + batch_normed(state, f"{part}.downsample.1", shortcut)
        x = x.relu()
    return F.conv2d(x, state[f"{name}.last_conv.weight"])


def branch_stage(state: State, x: Tensor, stage: int, size: Size) -> Tensor:
    name, stride = f"visual.transformer.parallel_branch_v.{stage}", size.strides[stage]
    if stage == 0:
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=1)
        return batch_normed(state, f"{name}.bn", x).relu()
    name = f"{name}.resnet_stage.conv_0"
    main = F.conv2d(x, state[f"{name}.conv1.weight"])
    main = batch_normed(state, f"{name}.bn1", main, 1e-6).relu()
    main = F.conv2d(main, state[f"{name}.conv2.weight"], stride=stride, padding=1)
    main = batch_normed(state, f"{name}.bn2", main, 1e-6).relu()
    main = batch_normed(state, f"{name}.bn3", F.conv2d(main, state[f"{name}.conv3.weight"]), 1e-6)
    shortcut = F.conv2d(x, state[f"{name}.residual_conv.weight"], stride=stride)
    return (main + batch_normed(state, f"{name}.residual_bn", shortcut, 1e-6)).relu()


def merged(state: State, tokens: Tensor, features: Tensor, stage: int, grid: torch.Size) -> Tensor:
    name = f"visual.transformer.parallel_lateral_adapter.{stage}"
    kernel = state[f"{name}.top2bottom_dw_conv.conv.weight"]
    lateral = F.conv2d(features, kernel, stride=kernel.shape[-1], groups=len(kernel))
    lateral = batch_normed(state, f"{name}.top2bottom_dw_conv.bn", lateral)
    lateral = F.conv2d(lateral, state[f"{name}.top2bottom_pw_conv.conv.weight"])
    first, patches = tokens[:, :1], tokens[:, 1:].mT.unflatten(2, grid)
    local = F.conv2d(patches, state[f"{name}.bottom_dw_conv.conv.weight"], padding=1, groups=patches.shape[1])
    local = batch_normed(state, f"{name}.bottom_dw_conv.bn", local)
    # The release adds the class token to itself.
    both = torch.cat([first + first, (local + lateral).flatten(2).mT], dim=1)
    return layer_norm(state, f"{name}.ln_adapt", both)


def write_model(folder: Path, size: Size, state: Any) -> Path:
    """A file of weights, and beside it the config of a small msclip-s-b32 or msclip-s-b16."""
    cfg, _ = find_config(f"msclip-s-b{size.patch}")
    cfg |= {"embed_dim": size.embed}
    cfg["vision_cfg"] |= {
        "image_size": size.image,
        "width": size.width,
        "head_width": size.width // size.heads,
    }
    cfg["text_cfg"] |= {"context_length": size.context, "width": size.width, "heads": size.heads}
    msclip = cfg.pop("msclip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "msclip": msclip}))
    torch.save(state, folder / "ckpt.pth")
    return folder / "ckpt.pth"


@pytest.mark.parametrize("patch", [32, 16])
def test_embeddings_are_those_of_the_release(patch: int, tmp_path: Path) -> None:
    size = Size(patch)
    state = random_state(size)
    clip = load_clip(str(write_model(tmp_path, size, state)))
    images = torch.randn(3, 3, size.image, size.image, generator=torch.Generator().manual_seed(1))
    tokens = clip.tokenizer(["a red square", "a hollow star on a very blue ground"])
    with torch.no_grad():
        of_images = clip.model.encode_image(images, normalize=True)
        of_texts = clip.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(of_images, image_embeddings(state, images, size), rtol=0, atol=1e-5)
    torch.testing.assert_close(of_texts, text_embeddings(state, tokens, size), rtol=0, atol=1e-5)
    assert (of_images[0] - of_images[1]).abs().max() > 1e-3
    assert clip.model.logit_scale.item() == pytest.approx(state["logit_scale"].item())


def test_a_student_takes_the_text_tower_of_a_release(tmp_path: Path) -> None:
    teacher = load_clip(str(write_model(tmp_path, Size(32), random_state(Size(32)))))
    student = build_student(StudentConfig(student="test_resnet"), teacher, seed=0)
    tokens = teacher.tokenizer(["a red square"])
    student.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(student.model.encode_text(tokens), teacher.model.encode_text(tokens))
    assert student.preprocessing.mean == teacher.preprocessing.mean


@pytest.mark.parametrize("patch", [32, 16])
def test_every_tensor_of_the_published_sizes_has_its_place(patch: int) -> None:
    name = f"msclip-s-b{patch}"
    size = Size(patch, image=224, width=768, heads=12, embed=512, context=77)
    with torch.device("meta"):
        model = build_open_clip(find_config(name)[0], where=name)
        state = {key: torch.empty(shape) for key, shape in shapes(size).items()}
    ours = convert_to_custom_text_state_dict(own_names(state))
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def without(name: str) -> Callable[[State], None]:
    """What takes a tensor out of a state."""

    def take_out(state: State) -> None:
        del state[name]

    return take_out


def unequal(state: State) -> None:
    state["visual.transformer.resblocks.3.mlp.c_fc.weight"] += 1e-3


def with_another(state: State) -> None:
    state["visual.transformer.parallel_lateral_adapter.0.top_dw_conv.conv.weight"] = torch.zeros(1)


def of_two_towers(state: State) -> None:
    for name in [name for name in state if name.startswith("visual.transformer.parallel_")]:
        del state[name]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("visual.transformer.resblocks.0.last_conv.weight"), r"are not in the file \(visual.stem.5"),
        (without("visual.transformer.resblocks.3.ln_1.bias"), "1 of .* are not in the file"),
        (with_another, r"Unknown to the model: 1 \(visual.transformer.parallel_lateral_adapter.0.top_dw"),
        (of_two_towers, "are not in the file"),
        (unequal, "text.transformer.resblocks.3.mlp.c_fc.weight differ in the file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    spoil: Callable[[State], None], message: str, tmp_path: Path
) -> None:
    state = random_state(Size(32))
    spoil(state)
    with pytest.raises(InputError, match=f"ckpt.pth: does not fit .*{message}"):
        load_clip(str(write_model(tmp_path, Size(32), state)))


def test_a_file_of_another_patch_size_is_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path, Size(32), random_state(Size(16)))
    with pytest.raises(InputError, match=r"differ in shape \(visual.positional_embedding is \[17, 64\]"):
        load_clip(str(file))


def test_a_file_is_named_with_the_config_that_it_belongs_to(tmp_path: Path) -> None:
    torch.save(random_state(Size(32)), tmp_path / "b32-yfcc-msclips_ckpt.pth")
    with pytest.raises(InputError, match="does not fit the model that tiny-msclip-s describes"):
        load_clip(f"open_clip:tiny-msclip-s/{tmp_path}/b32-yfcc-msclips_ckpt.pth")
    with pytest.raises(InputError, match=r"other\.pth: no such file\. msclip-s-b32 is a config of"):
        load_clip(f"open_clip:msclip-s-b32/{tmp_path}/other.pth")


@pytest.mark.parametrize("name", NAMED)
def test_epsilons_pixels_and_tokens_are_those_of_the_release(name: str) -> None:
    cfg, preprocess = find_config(name)
    with torch.device("meta"):
        model = build_open_clip(cfg, where=name)
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-12}
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            bottleneck = path.startswith("visual.branch.") and not path.startswith("visual.branch.0.")
            assert module.eps == (1e-6 if bottleneck else 1e-5), path
    assert preprocess == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert cfg["init_logit_scale"] == 1.0
    assert model.text.token_embedding.weight.shape == (49408, 768)
    assert model.context_length == 77


def small(name: str) -> dict[str, Any]:
    """The named config, narrower and of fewer layers."""
    cfg, _ = find_config(name)
    cfg["vision_cfg"] |= {"image_size": 64, "width": 128, "layers": 3}
    cfg["text_cfg"] |= {"context_length": 16, "width": 128, "heads": 2, "layers": 3}
    cfg["msclip"] |= {"lateral_blocks": [1, 2]} if cfg["msclip"]["specialised"] else {}
    return cfg


def deviations(model: nn.Module) -> dict[str, float]:
    """Standard deviation of each tensor of more than one dimension."""
    return {key: value.std().item() for key, value in model.state_dict().items() if value.ndim > 1}


@pytest.mark.parametrize("name", ["msclip-s-b32", "msclip-b32"])
def test_initial_weights_have_the_distributions_of_the_release(name: str) -> None:
    model = build_open_clip(small(name), where=name)
    for key, deviation in deviations(model).items():
        want = 0.02
        if key.endswith("in_proj_weight"):
            want = math.sqrt(2 / (4 * 128))  # Xavier's, from 128 to 3 x 128
        elif key == "text.token_embedding.weight":
            want = 1.0
        elif key in ("visual.proj", "visual.positional_embedding"):
            want = 128**-0.5
        assert deviation == pytest.approx(want, rel=0.35), key
    biases = [value for key, value in model.state_dict().items() if key.endswith("bias")]
    assert all(not bias.any() for bias in biases)
    assert model.logit_scale.item() == 1.0


def test_an_image_tower_beside_another_text_tower_draws_the_same() -> None:
    cfg = small("msclip-s-b32")
    cfg["msclip"]["shared"] = False
    found = deviations(build_open_clip(cfg, where="student"))
    assert found["visual.stem.5.weight"] == pytest.approx(0.02, rel=0.1)
    # open_clip's own.
    assert found["token_embedding.weight"] == pytest.approx(0.02, rel=0.1)
    assert found["text_projection"] == pytest.approx(128**-0.5, rel=0.1)
