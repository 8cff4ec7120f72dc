"""CLIP models, loaded by address (open_clip's registry, hub, directory, file or run) or newly made."""

import json
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.models.address import HUB, LOCAL_DIR, OPEN_CLIP, TIMM, named_file, split_address
from beamclip.models.hub import WEIGHTS, hub_file, registered_weights
from beamclip.models.model_config import (
    find_config,
    is_config,
    own_configs,
    read_json_object,
    without_pretrained_parts,
)
from beamclip.models.msclip import build_msclip
from beamclip.models.pixels import Preprocessing, normalise_pixels
from beamclip.models.pointwise import subsample_pointwise
from beamclip.models.tokenizer import Tokenizer, new_tokenizer, open_clip_tokenizer
from beamclip.models.weights import SUFFIXES, load_weights, weights_sha256
from beamclip.openclip import CLIP, CustomTextCLIP, PreprocessCfg, merge_preprocess_dict, open_clip
from beamclip.prompts.fitting import Fitting, read_fitting
from beamclip.spelling import did_you_mean, or_list

__all__ = [
    "ClipModel",
    "ImageTower",
    "LoadedClip",
    "Preprocessing",
    "Tokenizer",
    "load_clip",
    "new_clip",
    "normalise_pixels",
    "text_tower",
]

ClipModel: TypeAlias = CLIP | CustomTextCLIP
"""CLIP holds the text tower's modules itself, CustomTextCLIP under .text; their methods are the same."""

CONFIG_FILE = "open_clip_config.json"
WEB_CAPTIONS = Fitting(("openai7",), "open_clip's weights were trained on captions from the web")
"""The fitting of all weights in open_clip's registry."""
_PREFERRED_WEIGHTS = tuple(
    stem + suffix for stem in ("open_clip_model", "open_clip_pytorch_model") for suffix in SUFFIXES
)


@dataclass(frozen=True)
class ImageTower:
    """The image side of a model, which is all that training from images needs."""

    network: nn.Module
    """Normalised pixels [B, 3, size, size] -> embeddings [B, D]."""
    preprocessing: Preprocessing


@dataclass(frozen=True)
class LoadedClip:
    """An open_clip model with everything needed to use, identify and export it."""

    model: ClipModel
    tokenizer: Tokenizer

    model_cfg: dict[str, Any]
    """open_clip's description of the two towers, without requests for pretrained parts."""

    preprocess_cfg: dict[str, Any]
    """open_clip's keys: size, mode, mean, std, interpolation, resize_mode, fill_color."""

    fingerprint: str
    """sha256 of weights and configs when this object was made; training does not change it."""

    address: str
    """Where it came from, as the user wrote it."""

    fitting: Fitting | None = None
    """The templates that fit its text tower; None if its captions are unknown."""

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        return self.preprocessing.size

    @property
    def embed_dim(self) -> int:
        """Width of the embedding that both towers share."""
        return int(self.model_cfg["embed_dim"])

    @property
    def image_tower(self) -> ImageTower:
        """The model's own image tower, not a copy."""
        return ImageTower(self.model.visual, self.preprocessing)

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of parameters: of the `image` tower, and of the `whole` model."""
        return {
            "image": sum(each.numel() for each in self.model.visual.parameters()),
            "whole": sum(each.numel() for each in self.model.parameters()),
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """Size, mean and std of the image tower's input.

        Raises:
            InputError: the tower's input is not square.
        """
        size = self.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise InputError(
                f"{self.address}: its input is {height} x {width} pixels; only square input is supported."
            )
        mean, std = self.preprocess_cfg["mean"], self.preprocess_cfg["std"]
        return Preprocessing(int(height), tuple(mean), tuple(std))


def load_clip(address: str) -> LoadedClip:
    """Load a CLIP model, on the CPU, in float32 and eval mode.

    Args:
        address: one of
            `open_clip:NAME/TAG`: weights of open_clip's registry, from the local cache, else downloaded;
            `open_clip:NAME/FILE`, or NAME/FILE: a weights file for open_clip's, or our, config NAME; for an
                MS-CLIP-S, also a file of its authors' release;
            `hf-hub:ORG/NAME`: an open_clip model on the Hugging Face hub, cached or downloaded;
            a directory with an open_clip_config.json and its weights, also as `local-dir:PATH`;
            a weights file beside such a config;
            a run's folder, for the model in its model/.
            `open_clip:` may also precede `hf-hub:` and `local-dir:`.

    Raises:
        InputError: there is no such model, its files are broken, or its weights do not fit its config.
    """
    schema, rest = split_address(address)
    if schema == HUB:
        return _load_hub(rest, address)
    if schema == OPEN_CLIP:
        return _load_named(rest, address)
    if schema == TIMM:
        raise InputError(
            f"{address}: a backbone of timm has no text tower. Give a CLIP model, and the backbone as one of "
            "--vision-teachers beside it."
        )
    path, kind = _existing(rest, address)
    if kind == "directory":
        directory = _model_directory(path)
        return _load_local(directory, _weights_in(directory), address)
    if schema == LOCAL_DIR:
        raise InputError(f"{address}: {rest or repr(rest)} is not a directory. Give one with {CONFIG_FILE}.")
    if kind == "file":
        return _load_local(path.parent, path, address)
    if named_file(rest) and is_config(rest.partition("/")[0]):
        return _load_named(rest, address)
    raise InputError(_not_an_address(address))


def _existing(rest: str, address: str) -> tuple[Path, Literal["directory", "file", "nothing"]]:
    """Return the path and what kind of thing it is."""
    try:
        path = Path(rest).expanduser()
        if rest and path.is_dir():
            return path, "directory"
        return path, "file" if path.is_file() else "nothing"
    except (OSError, RuntimeError, ValueError) as error:
        # No permission, a name that is too long, an unknown ~user, a null byte.
        raise InputError(f"{address!r}: cannot be opened ({error}). Give another path.") from error


class _NoImageTower(nn.Module):
    """Placeholder for the image tower of a text-only model."""

    def forward(self, images: Tensor) -> Tensor:
        """Raise RuntimeError."""
        raise RuntimeError("this model was loaded for texts alone.")


def text_tower(clip: LoadedClip) -> LoadedClip:
    """Return a text-only model that shares its text tower with `clip` and has no image tower."""
    model = copy(clip.model)
    # The copy shares the dictionary of submodules: replace it, or `clip` would lose its image tower too.
    model._modules = {**clip.model._modules, "visual": _NoImageTower()}
    return replace(clip, model=model)


def new_clip(config: str | Path, seed: int, **replaced: Any) -> LoadedClip:
    """Make a CLIP model with random weights, on the CPU, in eval mode.

    Args:
        config: one of our names (tiny-resnet18, ...), one of open_clip's, or a JSON file with embed_dim,
            vision_cfg, text_cfg and, if wanted, "preprocess" with open_clip's preprocessing keys (mean, std).
        seed: decides the weights; the global random state is neither read nor changed. Parts that the config
            marks as pretrained are random too.
        replaced: top-level values that override the config's, such as init_logit_scale.

    Raises:
        InputError: there is no such config, or it does not describe a model.
    """
    model_cfg, preprocess = find_config(config)
    model_cfg = _with_text_apart({**model_cfg, **replaced})
    model = build_open_clip(model_cfg, where=str(config), seed=seed)
    return assemble(model, new_tokenizer(model_cfg, str(config)), model_cfg, preprocess, address=str(config))


def named_config(config: str | Path) -> dict[str, Any]:
    """Return the model_cfg that `new_clip` gives a model of this config.

    Raises:
        InputError: there is no such config.
    """
    return _with_text_apart(find_config(config)[0])


def with_logit_bias(clip: LoadedClip, bias: float) -> LoadedClip:
    """Give a model without a logit bias one, in place, and return it with the config and fingerprint of that.

    Args:
        bias: its value, as of the model's first training by SigLIP's loss.
    """
    clip.model.logit_bias = nn.Parameter(torch.full_like(clip.model.logit_scale, bias))
    model_cfg = {**clip.model_cfg, "init_logit_bias": bias}
    biased = assemble(clip.model, clip.tokenizer, model_cfg, clip.preprocess_cfg, address=clip.address)
    return replace(biased, fitting=clip.fitting)


def _with_text_apart(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the config with custom_text if it is of an MS-CLIP with both towers, which is always built so.

    A student's config loses the key "msclip", and must still say how its text tower is built.
    """
    both = "msclip" in model_cfg and model_cfg["msclip"].get("shared", True)
    return {**model_cfg, "custom_text": True} if both else model_cfg


def build_open_clip(model_cfg: dict[str, Any], *, where: str, seed: int = 0) -> ClipModel:
    """Build the open_clip model of a config, with random weights, in eval mode.

    This avoids open_clip's factory, which warns that a model is "initialized randomly" even when weights
    follow, and which accepts registered configs only.

    Raises:
        InputError: open_clip or timm refuse the config; `where` names it.
    """
    kwargs = deepcopy(model_cfg)
    custom_text = kwargs.pop("custom_text", False)
    try:
        custom_text = custom_text or "hf_model_name" in kwargs["text_cfg"]
        model_class: Callable[..., ClipModel]
        if "msclip" in kwargs:
            model_class = partial(build_msclip, custom_text=custom_text)
        elif "multimodal_cfg" in kwargs:
            model_class = open_clip.CoCa
        elif custom_text:
            model_class = open_clip.CustomTextCLIP
        else:
            model_class = open_clip.CLIP
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = model_class(**kwargs).eval()
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except Exception as error:
        # A bad config makes open_clip raise anything from KeyError to ImportError.
        cause = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{where}: open_clip cannot build this model ({cause}). Correct its config."
        ) from error
    subsample_pointwise(model.visual)
    return model


def assemble(
    model: ClipModel,
    tokenizer: Tokenizer,
    model_cfg: dict[str, Any],
    preprocess: dict[str, Any],
    *,
    address: str,
) -> LoadedClip:
    """Assemble a LoadedClip; missing preprocessing keys take open_clip's defaults.

    The image size is the tower's own, whatever the preprocessing says, as in open_clip's factory.

    Raises:
        InputError: mean or std are not three numbers each, or a std is not above 0.
    """
    preprocess_cfg = merge_preprocess_dict(asdict(PreprocessCfg()), preprocess)
    _check_colours(preprocess_cfg, address)
    preprocess_cfg["size"] = model.visual.image_size
    # Tuples become lists, so that a model and its reloaded export agree.
    preprocess_cfg = json.loads(json.dumps(preprocess_cfg))
    open_clip.set_model_preprocess_cfg(model, preprocess_cfg)
    fingerprint = weights_sha256(model, model_cfg, preprocess_cfg)
    return LoadedClip(model, tokenizer, model_cfg, preprocess_cfg, fingerprint, address)


def _check_colours(preprocess_cfg: dict[str, Any], address: str) -> None:
    for name in ("mean", "std"):
        values = preprocess_cfg[name]
        numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not numbers or len(values) != 3 or (name == "std" and min(values) <= 0):
            raise InputError(
                f"{address}: its preprocessing has {name} {values!r}. It must be three numbers, one for each "
                f"of red, green and blue{', above 0' if name == 'std' else ''}."
            )


def _load_named(rest: str, address: str) -> LoadedClip:
    """Load a model by its config's name, with registered weights or with those of a file."""
    name, _, tag = rest.partition("/")
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    file = named_file(rest)
    if not pretrained and file is not None:
        return _load_file_by_name(name, file, address)
    if name in own_configs():
        raise InputError(
            f"{address}: {tag or repr(tag)}: no such file. {name} is a config of beamclip, which open_clip "
            f"has no weights for: write {OPEN_CLIP}:{name}/FILE, or train it with beamclip pretrain."
        )
    registered = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if registered is None:
        hint = did_you_mean(
            name, open_clip.list_models(), "open_clip.list_models() lists all names.", count=4
        )
        raise InputError(f"{address}: open_clip has no model named {name!r}. {hint}")
    if not pretrained:
        raise InputError(_no_such_tag(address, name, tag))
    model_cfg = without_pretrained_parts(registered)
    # The registry lists OpenAI's weights under names whose config says GELU; the weights want QuickGELU.
    if pretrained.get("quick_gelu"):
        model_cfg["quick_gelu"] = True
    weights = registered_weights(pretrained, address)
    model = build_open_clip(model_cfg, where=address)
    load_weights(model, weights, config=f"open_clip's {name}")
    clip = assemble(model, open_clip_tokenizer(name, address), model_cfg, pretrained, address=address)
    return replace(clip, fitting=WEB_CAPTIONS)


def _load_file_by_name(name: str, file: Path, address: str) -> LoadedClip:
    """Load a file without a config, such as open_clip's training writes, into the named config's model."""
    _check_suffix(file)
    model_cfg, preprocess = find_config(name)
    model_cfg = _with_text_apart(model_cfg)
    model = build_open_clip(model_cfg, where=name)
    load_weights(model, file, config=name)
    return assemble(model, new_tokenizer(model_cfg, name), model_cfg, preprocess, address=address)


def _load_hub(repository: str, address: str) -> LoadedClip:
    config_file = hub_file(repository, [CONFIG_FILE], address)
    weights = hub_file(repository, WEIGHTS, address)
    return _load_configured(config_file, weights, f"{HUB}:{repository}", address)


def _load_local(directory: Path, weights: Path, address: str) -> LoadedClip:
    config_file = directory / CONFIG_FILE
    _check_suffix(weights)
    if not config_file.is_file():
        raise InputError(
            f"{weights}: weights do not say which model they belong to. Put its {CONFIG_FILE} beside it, or "
            f"name a config that open_clip knows: {OPEN_CLIP}:NAME/{weights}"
        )
    return _load_configured(config_file, weights, f"{LOCAL_DIR}:{directory}", address)


def _load_configured(config_file: Path, weights: Path, tokenizer: str, address: str) -> LoadedClip:
    """Load weights into the model of an open_clip_config.json.

    Args:
        tokenizer: the address at which open_clip finds the tokenizer.
    """
    config = read_json_object(config_file)
    if not isinstance(config.get("model_cfg"), dict):
        raise InputError(f"{config_file}: has no model_cfg. It must hold model_cfg and preprocess_cfg.")
    model_cfg = without_pretrained_parts(config["model_cfg"])
    if "msclip" in config:
        model_cfg = _with_text_apart({**model_cfg, "msclip": config["msclip"]})
    model = build_open_clip(model_cfg, where=str(config_file))
    load_weights(model, weights, config=str(config_file))
    found = open_clip_tokenizer(tokenizer, str(config_file))
    clip = assemble(model, found, model_cfg, config.get("preprocess_cfg", {}), address=address)
    return replace(clip, fitting=read_fitting(config_file.parent))


def _check_suffix(weights: Path) -> None:
    if weights.suffix not in SUFFIXES:
        raise InputError(f"{weights}: not a weights file; it must end with {or_list(SUFFIXES)}.")


def _model_directory(path: Path) -> Path:
    for directory in (path, path / "model"):
        if (directory / CONFIG_FILE).is_file():
            return directory
    raise InputError(
        f"{path}: neither a model directory nor a finished run: there is no {CONFIG_FILE}, here or in model/."
    )


def _weights_in(directory: Path) -> Path:
    try:
        present = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
    except OSError as error:
        raise InputError(f"{directory}: cannot be read ({error.strerror}).") from error
    preferred = [directory / name for name in _PREFERRED_WEIGHTS if directory / name in present]
    candidates = preferred[:1] or present
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise InputError(
            f"{directory}: has no weights. Put {_PREFERRED_WEIGHTS[0]} beside its {CONFIG_FILE}."
        )
    raise InputError(
        f"{directory}: holds {len(candidates)} weight files ({or_list(file.name for file in candidates)}). "
        "Name the one you mean in full."
    )


def _no_such_tag(address: str, name: str, tag: str) -> str:
    if Path(tag).suffix in SUFFIXES:
        return f"{address}: {tag}: no such file, and open_clip has no such tag."
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        return f"{address}: open_clip has no weights for {name}. Take another model, or local files."
    what = f"has no tag {tag!r}" if tag else "names no pretrained weights"
    return f"{address}: {what}. Write {OPEN_CLIP}:{name}/TAG, where TAG is {or_list(tags)}."


def _not_an_address(address: str) -> str:
    name = address.partition("/")[0]
    hint = f" Did you mean {OPEN_CLIP}:{address}?" if name in open_clip.list_models() else ""
    return (
        f"{address or repr(address)}: no such file or directory.{hint} A model is given as "
        f"{OPEN_CLIP}:NAME/TAG, {HUB}:ORG/NAME, a directory with {CONFIG_FILE}, a weights file beside one, "
        f"{OPEN_CLIP}:NAME/FILE, or a run."
    )
