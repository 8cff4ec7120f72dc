"""Model configs: ours, open_clip's, and JSON files."""

import json
from copy import deepcopy
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from beamclip.errors import InputError
from beamclip.files import read_json
from beamclip.openclip import open_clip
from beamclip.spelling import did_you_mean, or_list

INITIAL_WEIGHTS = ("init_logit_scale", "init_logit_bias", "init")
"""Keys of a model config, the last one of its part "msclip", that only say how weights begin."""


def own_configs() -> dict[str, Traversable]:
    """Return the files of our own model configs, by name."""
    folder = files("beamclip.models") / "configs"
    return {file.name.removesuffix(".json"): file for file in folder.iterdir()}


def is_config(name: str) -> bool:
    """Whether one of our configs, or of open_clip's, has this name."""
    return name in own_configs() or name in open_clip.list_models()


def find_config(config: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (model_cfg, preprocessing keys) for one of our names, one of open_clip's, or a JSON file.

    Raises:
        InputError: there is no such config, or it does not describe a model.
    """
    ours = own_configs()
    if str(config) in ours:
        found = json.loads(ours[str(config)].read_text())
    elif Path(config).suffix == ".json":
        found = read_json_object(Path(config).expanduser())
    elif str(config) in open_clip.list_models():
        found = open_clip.get_model_config(str(config))
    else:
        hint = did_you_mean(str(config), [*ours, *open_clip.list_models()], "", count=4)
        raise InputError(
            f"{config}: no model config of this name. {hint and hint + ' '}"
            f"Give {or_list(sorted(ours))}, an open_clip model name, or a JSON file."
        )
    absent = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in found]
    if absent:
        raise InputError(
            f"{config}: has no {or_list(absent)}. A model config has embed_dim, vision_cfg and text_cfg."
        )
    for key in ("vision_cfg", "text_cfg"):
        if not isinstance(found[key], dict):
            raise InputError(f"{config}: {key} is {found[key]!r}. It must be a JSON object.")
    preprocess = found.pop("preprocess", {})
    if not isinstance(preprocess, dict):
        raise InputError(f"{config}: preprocess is {preprocess!r}. It must be a JSON object.")
    return without_pretrained_parts(found), preprocess


def without_pretrained_parts(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with which open_clip builds the model without downloading weights for its parts."""
    model_cfg = deepcopy(model_cfg)
    for tower, name, pretrained in (
        ("vision_cfg", "timm_model_name", "timm_model_pretrained"),
        ("text_cfg", "hf_model_name", "hf_model_pretrained"),
    ):
        if isinstance(model_cfg.get(tower), dict) and name in model_cfg[tower]:
            model_cfg[tower][pretrained] = False
    return model_cfg


def config_difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Name the first value in which two model configs differ, as in "vision_cfg.width is 64 and 128".

    Empty if they describe one architecture: how weights begin does not count.
    """
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name), second.get(name)
        if one == other or name in INITIAL_WEIGHTS:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            return f"{name}.{config_difference(one, other)}"
        return f"{name} is {json.dumps(one)} and {json.dumps(other)}"
    return ""


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if not file.exists():
        raise InputError(f"{file}: no such file.")
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold a JSON object, not a {type(content).__name__}.")
    return content
