"""What an image costs a teacher or a student, counted on torch's meta device: no weights, no arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from beamclip.errors import InputError
from beamclip.models.model_config import find_config
from beamclip.openclip import open_clip, timm
from beamclip.spelling import did_you_mean

_IMAGES = 2
"""Batch norms of a single image refuse to train, and the networks are counted as they train."""


@dataclass(frozen=True)
class ModelCost:
    """An image tower, by what it costs."""

    name: str
    gflops: float
    """Of a forward pass of one image, a multiplication and an addition counted as two, 1e9."""
    parameters: int
    image_size: int
    """Side of its images, pixels."""
    embed_dim: int
    """Numbers of an embedding."""


def teacher_cost(name: str) -> ModelCost:
    """Count the image tower of a CLIP model.

    Args:
        name: of a config of open_clip or beamclip, or an address `open_clip:NAME/TAG`.

    Raises:
        InputError: there is no such model.
    """
    name = name.removeprefix("open_clip:").partition("/")[0]
    if name not in open_clip.list_models():
        hint = did_you_mean(name, open_clip.list_models(), "Give a name of open_clip.", count=4)
        raise InputError(f"teacher {name!r}: open_clip has no such model. {hint}")
    model_cfg, _ = find_config(name)
    described = open_clip.CLIPVisionCfg(**model_cfg["vision_cfg"])
    size = described.image_size
    if not isinstance(size, int):
        raise InputError(f"teacher {name}: its images of {size} pixels are not square. Take another.")
    width = int(model_cfg["embed_dim"])
    return _counted(name, lambda: open_clip.model._build_vision_tower(width, described), size, width)


def student_cost(name: str, image_size: int, embed_dim: int) -> ModelCost:
    """Count a backbone of timm with a linear head.

    Args:
        image_size: side of its images, pixels.
        embed_dim: numbers of its teacher's embeddings.

    Raises:
        InputError: timm has no such model, or it does not take images of this size.
    """
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), "timm.list_models() lists all names.", count=4)
        raise InputError(f"student {name!r}: timm has no such model. {hint}")
    try:
        return _counted(name, lambda: timm.create_model(name, num_classes=embed_dim), image_size, embed_dim)
    except Exception as error:  # a network may raise anything for images that it was not made for
        raise InputError(
            f"student {name}: does not take images of {image_size} x {image_size} pixels "
            f"({' '.join(str(error).split())[:100]}). Take another."
        ) from error


def _counted(name: str, build: Callable[[], nn.Module], image_size: int, embed_dim: int) -> ModelCost:
    with torch.device("meta"):
        network = build()
        images = torch.empty(_IMAGES, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        network(images)
    parameters = sum(each.numel() for each in network.parameters())
    return ModelCost(name, counter.get_total_flops() / _IMAGES / 1e9, parameters, image_size, embed_dim)
