"""Students: a timm backbone with a projection into the teacher's space, and the teacher's text tower.

open_clip's own config describes a student completely, so that open_clip alone can load an exported one
(unless its image tower is MS-CLIP-S's). That rules out a few backbones: see `build_student`.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from beamclip.errors import InputError
from beamclip.models.clip import ClipModel, ImageTower, LoadedClip, assemble, build_open_clip
from beamclip.models.config import Head, StudentConfig
from beamclip.models.hub import pretrained_backbone
from beamclip.models.init_pixels import check_init_pixels, init_colours
from beamclip.models.model_config import find_config, own_configs
from beamclip.models.msclip import SpecialisedVision
from beamclip.models.weights import first_line, load_backbone
from beamclip.openclip import TimmModel, VisionTransformer, timm
from beamclip.spelling import did_you_mean, or_list

# open_clip's (timm_pool, timm_proj), in order of preference. "" leaves pooling to the network: a ViT keeps
# its class token. Networks with a hidden layer before the classifier give more features than the num_features
# by which open_clip sizes its projection; only for these, the network's own classifier is the projection.
_PROJECTIONS: dict[Head, tuple[tuple[str, str], ...]] = {
    "linear": (("", "linear"), ("avg", "")),
    "mlp": (("", "mlp"),),
}
_ANY_SIZE_AND_HEAD = ("resnet18", "convnext_atto", "efficientnet_b0", "xcit_nano_12_p16_224")


def build_student(config: StudentConfig, teacher: LoadedClip, seed: int) -> LoadedClip:
    """Build a student on the CPU, with copies of the teacher's text tower and logit scale.

    Only the image tower (`model.visual`) requires gradients and is in train mode. The student's mean and std
    are the teacher's, so that both see the same input, unless its initial weights were trained with others:
    those of `pretrained`, or of `init_checkpoint` (see `init_pixels`).

    The student is a timm backbone, or the image tower of one of our MS-CLIP configs. A student with the tower
    of MS-CLIP-S needs beamclip to load it, all others open_clip alone.

    Most timm networks work. Refused are networks with a position grid of one size (ViT, DeiT, Swin, LeViT,
    ...) at any other size, and networks with a hidden layer before the classifier (MobileNetV3 and V4,
    GhostNet, LCNet, HGNetV2, VGG) with an mlp head: open_clip's config cannot describe either.

    Args:
        seed: decides the weights that are not loaded.

    Raises:
        InputError: there is no such backbone, it cannot be used this way, or its weights cannot be loaded.
    """
    _check(config, teacher)
    # Without its image tower, an MS-CLIP's text tower is an ordinary one of open_clip's.
    model_cfg = {key: value for key, value in teacher.model_cfg.items() if key != "msclip"}
    if _is_msclip(config.student):
        model_cfg |= _msclip_tower(config, teacher)
    else:
        model_cfg["vision_cfg"] = _vision_cfg(config, teacher)
    model = build_open_clip(model_cfg, where=config.student, seed=seed)
    preprocess = teacher.preprocess_cfg
    if config.pretrained:
        preprocess = {**preprocess, **_load_pretrained(model.visual.trunk, config.student)}
    if config.init_checkpoint is not None:
        load_backbone(model.visual.trunk, config.init_checkpoint.expanduser(), config.student)
        preprocess = {**preprocess, **init_colours(config)}
    copy_text_tower(model, teacher.model)
    model.visual.train()
    address = f"{config.student} <- {teacher.address}"
    student = assemble(model, teacher.tokenizer, model_cfg, preprocess, address=address)
    # The text tower is the teacher's, so the same templates fit it.
    return replace(student, fitting=teacher.fitting)


def backbone_features(tower: nn.Module, images: Tensor) -> Tensor:
    """Return the features for a linear probe: those before the projection into the shared space.

    For open_clip's ResNets, and for towers that pool by attention, projection and pooling are one layer: the
    embedding itself is returned, as CLIP's authors used it in their probes.

    Args:
        tower: the image tower of a CLIP model.
        images: [B, 3, H, W], normalised.

    Returns:
        [B, F] in the tower's dtype; with gradients unless the caller switches them off.
    """
    return embeddings_and_features(tower, images)[1]


def embeddings_and_features(tower: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a tower's output and its `backbone_features`, from one pass.

    Args:
        tower: the image tower of a CLIP model.
        images: [B, 3, H, W], normalised.

    Returns:
        [B, D], not yet of unit length, with the values that the tower alone computes; and [B, F].
    """
    if isinstance(tower, TimmModel):
        return _of_trunk(tower, images)
    if isinstance(tower, VisionTransformer | SpecialisedVision) and tower.proj is not None:
        identity = torch.eye(tower.proj.shape[0], dtype=tower.proj.dtype, device=tower.proj.device)
        features = _first(functional_call(tower, {"proj": identity}, (images,)))
        return features @ tower.proj, features
    output = _first(tower(images))
    return output, output


def feature_width(tower: ImageTower) -> int:
    """Return the width F of a tower's `backbone_features`; the tower itself is not run."""
    size = tower.preprocessing.size
    # The meta device takes no memory or arithmetic.
    network = deepcopy(tower.network).to("meta").eval()
    return backbone_features(network, torch.empty(1, 3, size, size, device="meta")).shape[1]


def _of_trunk(tower: TimmModel, images: Tensor) -> tuple[Tensor, Tensor]:
    trunk = tower.trunk
    if len(tower.head) == 0:  # the backbone's own classifier is the projection
        maps = trunk.forward_features(images)
        return trunk.forward_head(maps), trunk.forward_head(maps, pre_logits=True)
    features = trunk(images)
    output = tower.head(features)
    return output, features if features.ndim == 2 else output


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """CoCa's tower returns the tokens too."""
    return output[0] if isinstance(output, tuple) else output


def _is_msclip(name: str) -> bool:
    return name in own_configs() and "msclip" in find_config(name)[0]


def _msclip_tower(config: StudentConfig, teacher: LoadedClip) -> dict[str, Any]:
    """Return the part of a student's config that describes an MS-CLIP image tower."""
    if config.student_head != "linear" or config.pretrained or config.init_checkpoint is not None:
        raise InputError(
            f"student {config.student}: has a projection of its own and starts from random weights. Leave "
            "student_head, pretrained and init_checkpoint out, or take a backbone of timm."
        )
    source, _ = find_config(config.student)
    size = config.student_image_size or teacher.image_size
    if size % source["vision_cfg"]["patch_size"]:
        raise InputError(
            f"student {config.student}: images of {size} x {size} pixels cannot be cut into patches of "
            f"{source['vision_cfg']['patch_size']}. Give a multiple of it as student_image_size."
        )
    tower = {"vision_cfg": {**source["vision_cfg"], "image_size": size}}
    if not source["msclip"].get("specialised", False):
        return tower
    return {**tower, "msclip": {**source["msclip"], "shared": False}}


def _check(config: StudentConfig, teacher: LoadedClip) -> None:
    if not timm.is_model(config.student) and not _is_msclip(config.student):
        known = [*own_configs(), *timm.list_models()]
        hint = did_you_mean(config.student, known, "timm.list_models() lists all names.", count=4)
        raise InputError(f"student {config.student!r}: timm has no such model. {hint}")
    if config.pretrained and config.init_checkpoint is not None:
        raise InputError(
            f"student {config.student}: pretrained and init_checkpoint ({config.init_checkpoint}) are both "
            "given, and both set the backbone's first weights. Drop one."
        )
    check_init_pixels(config)
    if "multimodal_cfg" in teacher.model_cfg:
        raise InputError(
            f"{teacher.address}: a captioning model (CoCa); its text tower fits no student. Take a CLIP."
        )


def _vision_cfg(config: StudentConfig, teacher: LoadedClip) -> dict[str, Any]:
    """Find open_clip's description of the image tower, by trial: timm does not say what a network accepts.

    Raises:
        InputError: open_clip cannot build this one.
    """
    name, head = config.student, config.student_head
    size = config.student_image_size or teacher.image_size
    vision_cfg, cause = _try(name, head, size, teacher.embed_dim)
    if vision_cfg:
        return vision_cfg
    pretrained_cfg = timm.get_pretrained_cfg(name)
    native = int(pretrained_cfg.input_size[-1]) if pretrained_cfg else size
    vision_cfg, _ = _try(name, head, native, teacher.embed_dim)
    if vision_cfg and config.student_image_size is None:
        return vision_cfg
    others = f"such as {or_list(_ANY_SIZE_AND_HEAD)}"
    if vision_cfg:
        raise InputError(
            f"student {name}: cannot take images of {size} x {size} pixels ({cause}), as open_clip builds it "
            f"for {native} x {native}. Leave student_image_size out, or take another student, {others}."
        )
    if head == "mlp" and _try(name, "linear", native, teacher.embed_dim)[0]:
        raise InputError(
            f"student {name}: has a hidden layer before its classifier, and open_clip cannot put an mlp "
            f"behind it. Use student_head linear, or another student, {others}."
        )
    raise InputError(
        f"student {name}: open_clip cannot use it as an image tower ({cause}). Take another, {others}."
    )


def _try(name: str, head: Head, size: int, embed_dim: int) -> tuple[dict[str, Any], str]:
    """Return a description with which the tower encodes an image, or {} and the first reason for failing."""
    causes = []
    for pool, proj in _PROJECTIONS[head]:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                tower = TimmModel(name, embed_dim, image_size=size, pool=pool, proj=proj).eval()
                shape = list(tower(torch.zeros(1, 3, size, size)).shape)
        except Exception as error:
            # A network may raise anything when it is used in a way it was not made for.
            causes.append(f"{type(error).__name__}: {error}")
            continue
        if shape == [1, embed_dim]:
            return _timm_cfg(name, pool, proj, size), ""
        causes.append(f"an embedding of shape {shape} instead of [1, {embed_dim}]")
    return {}, causes[0]


def _timm_cfg(name: str, pool: str, proj: str, size: int) -> dict[str, Any]:
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
        "image_size": size,
    }


def _load_pretrained(trunk: nn.Module, name: str) -> dict[str, Any]:
    """Fill the trunk with timm's weights; return the mean and std that they were trained with."""
    try:
        source = pretrained_backbone(name)
    except Exception as error:
        # Hub, cache and file errors share no base class.
        raise InputError(
            f"student {name}: timm's pretrained weights are not in the local cache and cannot be "
            f"downloaded ({first_line(error)}). Check the network, give a local file as init_checkpoint, or "
            "leave pretrained out."
        ) from error
    unknown = trunk.load_state_dict(source.state_dict(), strict=False).unexpected_keys
    assert not unknown, f"{name} with and without open_clip differ in {unknown}"
    used_to = cast("dict[str, Any]", source.pretrained_cfg)
    return {"mean": used_to["mean"], "std": used_to["std"]}


def drop_text_tower(student: LoadedClip) -> None:
    """Free all weights but the image tower's: a student trains without them.

    The model cannot encode texts until `attach_text_tower`.
    """
    for parameter in _text_parameters(student).values():
        parameter.data = parameter.data.new_empty(0)


def attach_text_tower(student: LoadedClip, teacher: LoadedClip) -> None:
    """Let a student share its teacher's weights for texts, uncopied; neither may train from then on."""
    theirs = teacher.model.state_dict()
    for name, parameter in _text_parameters(student).items():
        parameter.data = theirs[name]


def _text_parameters(student: LoadedClip) -> dict[str, nn.Parameter]:
    named = student.model.named_parameters()
    return {name: parameter for name, parameter in named if not name.startswith("visual.")}


def copy_text_tower(student: ClipModel, teacher: ClipModel) -> None:
    """Copy all weights but the image tower's from the teacher, and freeze them."""
    theirs = {key: value for key, value in teacher.state_dict().items() if not key.startswith("visual.")}
    result = student.load_state_dict(theirs, strict=False)
    differing = result.unexpected_keys + [key for key in result.missing_keys if not key.startswith("visual.")]
    assert not differing, f"text towers of one config differ in {differing}"
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
