"""Networks, or their lowest layers, that keep their weights while the rest trains."""

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from beamclip.errors import InputError
from beamclip.models.clip import ClipModel
from beamclip.training.layers import layers_above

Tower = Literal["image", "text"]


def check_layers(tower: nn.Module, count: int) -> None:
    """Refuse to freeze as many layers as a network has, its projection included; see `layers_above`.

    Raises:
        InputError: says how many there are.
    """
    if count and count >= (layers := len(_from_input(tower))):
        raise InputError(
            f"--frozen-layers {count}: the image tower has {layers} layers, and the one on top has to learn. "
            f"Give {layers - 1} or less."
        )


def freeze_layers(tower: nn.Module, count: int) -> list[str]:
    """Freeze the lowest layers of a network.

    Returns:
        The names of the batch norms in them: these must stay in eval mode, or their statistics would move.

    Raises:
        InputError: as check_layers.
    """
    if not count:
        return []
    check_layers(tower, count)
    above, lowest = layers_above(tower), _from_input(tower)[:count]
    for name, parameter in tower.named_parameters():
        if above[name] in lowest:
            parameter.requires_grad_(False)
    return [name for name, part in tower.named_modules() if isinstance(part, _BatchNorm) and _is_frozen(part)]


def _from_input(tower: nn.Module) -> list[int]:
    """Return the number of layers above each layer, from the input on."""
    return sorted(set(layers_above(tower).values()), reverse=True)


def _is_frozen(part: nn.Module) -> bool:
    required = [parameter.requires_grad for parameter in part.parameters()]
    return bool(required) and not any(required)


def lock_tower(clip: ClipModel, tower: Tower) -> list[str]:
    """Freeze a whole tower of a model, as in LiT (https://arxiv.org/abs/2111.07991).

    Returns:
        The names of its modules, which are to stay in eval mode.
    """
    for name, parameter in clip.named_parameters():
        if _tower_of(name) == tower:
            parameter.requires_grad_(False)
    return [name for name, _ in clip.named_children() if _tower_of(name) == tower]


def _tower_of(name: str) -> Tower | None:
    """Return the tower that a tensor or module of a CLIP belongs to; logit scale and bias belong to none."""
    part = name.partition(".")[0]
    if part in ("logit_scale", "logit_bias"):
        return None
    return "image" if part == "visual" else "text"
