"""Mean and std of the pixels that a checkpoint's weights were trained with."""

from pathlib import Path
from typing import Any

from beamclip.errors import InputError
from beamclip.models.config import StudentConfig
from beamclip.models.model_config import read_json
from beamclip.openclip import open_clip

Colours = dict[str, Any]
"""{"mean": three numbers, "std": three numbers}; empty for the teacher's."""

_FAMILIES: dict[str, Colours] = {
    "imagenet": {"mean": open_clip.constants.IMAGENET_MEAN, "std": open_clip.constants.IMAGENET_STD},
    "inception": {"mean": open_clip.constants.INCEPTION_MEAN, "std": open_clip.constants.INCEPTION_STD},
    "openai": {
        "mean": open_clip.constants.OPENAI_DATASET_MEAN,
        "std": open_clip.constants.OPENAI_DATASET_STD,
    },
    "teacher": {},
}
_CONFIGS = (("open_clip_config.json", "preprocess_cfg"), ("config.json", "pretrained_cfg"))
"""Files that open_clip and timm leave beside weights, and the key under which they hold mean and std."""


def init_colours(config: StudentConfig) -> Colours:
    """Return the mean and std of a student that starts from `init_checkpoint`; empty for its teacher's.

    Raises:
        InputError: the config beside the checkpoint cannot be read.
    """
    if config.init_checkpoint is None:
        return {}
    if config.init_mean is not None:
        return {"mean": config.init_mean, "std": config.init_std}
    if config.init_pixels != "auto":
        return _FAMILIES[config.init_pixels]
    return _beside(config.init_checkpoint.expanduser().parent) or _FAMILIES["imagenet"]


def check_init_pixels(config: StudentConfig) -> None:
    """Check that the options of init_pixels are complete, consistent and on the scale 0..1.

    Raises:
        InputError: they are not; the message names the option.
    """
    mean, std = config.init_mean, config.init_std
    if config.init_checkpoint is None and (config.init_pixels != "auto" or mean or std):
        raise InputError("init_pixels, init_mean and init_std have no effect without init_checkpoint.")
    if (mean is None) != (std is None):
        raise InputError("init_mean and init_std: one is given without the other. Give both.")
    if mean is None or std is None:
        return
    if config.init_pixels != "auto":
        raise InputError(f"init_pixels is {config.init_pixels}, and init_mean is given too. Drop one.")
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise InputError(
            f"init_mean {mean}, init_std {std}: pixels are on the scale 0..1 here. Divide by 255 "
            "values meant for 0..255; a std is above 0."
        )


def _beside(folder: Path) -> Colours:
    for name, key in _CONFIGS:
        file = folder / name
        said = read_json(file).get(key) if file.is_file() else None
        if isinstance(said, dict) and "mean" in said and "std" in said:
            return {"mean": said["mean"], "std": said["std"]}
    return {}
