"""Write a model's image tower as a backbone of timm."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from beamclip.errors import FailedRunError, InputError
from beamclip.export.folder import Layout, save_weights, write_folder
from beamclip.models.clip import LoadedClip
from beamclip.openclip import TimmModel, timm
from beamclip.places import one_line

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LAYOUT = Layout(CONFIG_FILE, (WEIGHTS_FILE,))
_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}
"""open_clip's names of the ways to fit a picture into a square -> timm's."""


def write_timm_backbone(clip: LoadedClip, out: Path) -> Path:
    """Write the image tower's backbone, without projection, for `timm.create_model("local-dir:OUT")`.

    Returns:
        out.

    Raises:
        InputError: the image tower is not a timm network, or out holds something other than a model.
    """
    trunk = timm_trunk(clip)
    return write_folder(out, LAYOUT, lambda directory: fill_timm_backbone(clip, trunk, directory))


def timm_trunk(clip: LoadedClip) -> Any:
    """Return a copy of the image tower's backbone without a classifier: [B, 3, S, S] -> [B, F].

    Raises:
        InputError: the image tower is not a timm network.
    """
    tower = clip.model.visual
    if not isinstance(tower, TimmModel):
        raise InputError(
            f"{clip.address}: its image tower is open_clip's own {type(tower).__name__}, not a timm network. "
            "Export it with --format open_clip or onnx."
        )
    trunk = deepcopy(tower.trunk)
    # The features of a tower that pools by attention are those before its pooling, averaged.
    pooling = {"global_pool": "avg"} if hasattr(tower.head, "pool") else {}
    trunk.reset_classifier(0, **pooling)
    cfg, size = trunk.pretrained_cfg, clip.image_size
    # timm builds a network of fixed size for the student's; this one may be adapting anew to each image.
    if cfg.get("fixed_input_size") and cfg["input_size"][1] != size and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=(size, size))
    return trunk.eval()


def fill_timm_backbone(clip: LoadedClip, trunk: Any, directory: Path) -> None:
    """Write the files of a backbone into a directory; see write_timm_backbone.

    Args:
        trunk: as returned by timm_trunk.
    """
    size, cfg = clip.image_size, clip.preprocess_cfg
    own = trunk.pretrained_cfg
    config = {
        "architecture": architecture(trunk),
        "num_classes": 0,
        "num_features": trunk.num_features,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": own.get("fixed_input_size", False),
            "interpolation": cfg["interpolation"],
            "crop_pct": 1.0,
            "crop_mode": _CROP_MODES[cfg["resize_mode"]],
            "mean": cfg["mean"],
            "std": cfg["std"],
            "num_classes": 0,
            "first_conv": own.get("first_conv"),
            "classifier": own["classifier"],
        },
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_weights(trunk, directory / WEIGHTS_FILE)


def architecture(trunk: Any) -> str:
    """Return the name by which timm makes this network."""
    return str(trunk.pretrained_cfg["architecture"])


def load_both_ways(directory: Path, name: str, images: Tensor) -> list[Tensor]:
    """Return the features of images by the written backbone, loaded as a directory and as a checkpoint.

    Args:
        images: [B, 3, S, S], normalised.

    Returns:
        Two tensors [B, F].

    Raises:
        FailedRunError: timm cannot load or run it.
    """
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    try:
        by_directory = timm.create_model(f"local-dir:{directory}", pretrained=True)
        by_checkpoint = timm.create_model(
            name,
            num_classes=0,
            checkpoint_path=directory / WEIGHTS_FILE,
            pretrained_cfg_overlay=config["pretrained_cfg"],
        )
        return [network.eval()(images) for network in (by_directory, by_checkpoint)]
    except Exception as error:  # of timm or torch, such as an assertion about the input's size
        raise FailedRunError(
            f"timm cannot use the backbone {name} that was made ({one_line(error)}): nothing was written. "
            "Use another --format."
        ) from error
