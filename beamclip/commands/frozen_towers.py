"""The towers that a pre-training freezes, and which cannot be frozen."""

from beamclip.commands.options import PretrainConfig
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip
from beamclip.training.frozen import Tower, check_layers
from beamclip.training.optim import shared_parameters


def locked_towers(config: PretrainConfig) -> tuple[Tower, ...]:
    """Return the towers that keep their weights."""
    asked: dict[Tower, bool] = {"image": config.lock_image, "text": config.lock_text}
    return tuple(tower for tower, locked in asked.items() if locked)


def check_frozen_towers(config: PretrainConfig, clip: LoadedClip) -> None:
    """Refuse to freeze a tower of an MS-CLIP, or all layers of an image tower.

    Raises:
        InputError: the towers share tensors; or as training.frozen.check_layers.
    """
    asked = {
        "--lock-image": config.lock_image,
        "--lock-text": config.lock_text,
        "--frozen-layers": config.optim.frozen_layers,
    }
    given = [flag for flag, value in asked.items() if value]
    if given and shared_parameters(clip.model):
        raise InputError(
            f"{given[0]}: the towers of {clip.address} share layers, so that one cannot keep them while the "
            "other learns. Leave it out, or take a model whose towers are apart."
        )
    check_layers(clip.model.visual, config.optim.frozen_layers)
