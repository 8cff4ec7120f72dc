"""Pictures as files, and as evaluation brings them to a model's input: what exports are compared on."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beamclip.data.transforms import load_evaluation_image
from beamclip.models.clip import LoadedClip


def fitted_picture(content: bytes, clip: LoadedClip) -> NDArray[np.uint8]:
    """Decode a picture and bring it to a model's input, as evaluation does: uint8 [S, S, 3].

    Raises:
        ImageRefused: it cannot be decoded, or is beyond the limits.
    """
    cfg = clip.preprocess_cfg
    return load_evaluation_image(
        content,
        clip.image_size,
        resize_mode=cfg["resize_mode"],
        interpolation=cfg["interpolation"],
        fill_color=cfg["fill_color"],
    )


def stacked(images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """Stack images, uint8 [size, size, 3] each, perhaps none: uint8 [N, 3, size, size]."""
    rows = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()
