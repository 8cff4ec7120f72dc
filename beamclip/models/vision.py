"""Teachers of vision only: backbones of timm, which have no text tower and so no anchors.

Self-supervised ones (DINO, https://arxiv.org/abs/2104.14294, and its successors, MoCo) or supervised ones.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from beamclip.errors import InputError
from beamclip.models.address import TIMM, split_address
from beamclip.models.clip import ImageTower
from beamclip.models.hub import pretrained_backbone
from beamclip.models.pixels import Preprocessing
from beamclip.models.weights import first_line, load_backbone, weights_sha256
from beamclip.openclip import timm
from beamclip.spelling import did_you_mean


@dataclass(frozen=True)
class VisionTeacher:
    """What identifies a teacher of vision only, without its network."""

    address: str
    """As the user wrote it."""
    fingerprint: str
    """sha256 of its weights, architecture and preprocessing."""
    width: int
    """Width of its features."""
    preprocessing: Preprocessing
    """Size, mean and std of its input."""

    @property
    def name(self) -> str:
        """Its name in timm, with the tag if one was given."""
        return split_address(self.address)[1].partition("/")[0]

    @property
    def image_size(self) -> int:
        """Side of its square input, pixels."""
        return self.preprocessing.size


def load_vision_teacher(address: str, image_size: int | None = None) -> tuple[VisionTeacher, ImageTower]:
    """Load a teacher of vision only, on the CPU, in float32 and eval mode.

    Its features are those before timm's classifier, as timm pools them. Mean, std and, by default, size are
    those of timm's data config for the name: name the tag whose weights, or whose kind of weights, it has.

    Args:
        address: `timm:NAME` for the pretrained weights of the tag in NAME, cached or downloaded, or
            `timm:NAME/FILE` for a checkpoint in any layout that `load_backbone` reads.
        image_size: side of its input instead of timm's, pixels; position embeddings are interpolated.

    Returns:
        The teacher, and its network: normalised pixels [B, 3, size, size] -> features [B, width].

    Raises:
        InputError: there is no such backbone, its weights cannot be had or do not fit, or it does not take
            images of this size.
    """
    schema, rest = split_address(address)
    name, slash, file = rest.partition("/")
    if schema != TIMM:
        raise InputError(
            f"{address}: not a teacher of vision only. Give {TIMM}:NAME or {TIMM}:NAME/FILE, where NAME is "
            "timm's; CLIP models belong to --teacher and --more-teachers."
        )
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), "timm.list_models() lists all names.", count=4)
        raise InputError(f"{address}: timm has no such model. {hint}")
    with torch.random.fork_rng(devices=[]):
        network = _from_file(name, Path(file).expanduser()) if slash else _pretrained(name, address)
    network.eval()
    preprocessing = _preprocessing(network, image_size)
    width = _width(network, preprocessing.size, image_size is not None, address)
    described = {"timm": name.partition(".")[0], **asdict(preprocessing)}
    fingerprint = weights_sha256(network, described)
    return VisionTeacher(address, fingerprint, width, preprocessing), ImageTower(network, preprocessing)


def _from_file(name: str, file: Path) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, num_classes=0)
    except Exception as error:
        # timm raises anything from RuntimeError to ImportError.
        raise InputError(
            f"{name}: timm cannot build it ({first_line(error)}). Take another backbone or tag."
        ) from error
    load_backbone(network, file, name)
    return network


def _pretrained(name: str, address: str) -> nn.Module:
    try:
        return pretrained_backbone(name)
    except Exception as error:
        # Hub, cache and file errors share no base class.
        raise InputError(
            f"{address}: timm's pretrained weights are not in the local cache and cannot be downloaded "
            f"({first_line(error)}). Check its tag and the network, or give a local file: {TIMM}:NAME/FILE."
        ) from error


def _preprocessing(network: nn.Module, image_size: int | None) -> Preprocessing:
    config = cast("dict[str, Any]", timm.data.resolve_model_data_config(network))
    size = image_size or int(config["input_size"][-1])
    return Preprocessing(size, tuple(config["mean"]), tuple(config["std"]))


def _width(network: Any, size: int, chosen: bool, address: str) -> int:
    """Have a network take images of a size, if it was chosen, and return the width of its features."""
    try:
        if chosen and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=(size, size))
        with torch.no_grad():
            shape = list(network(torch.zeros(1, 3, size, size)).shape)
    except Exception as error:
        # A network may raise anything when it is used in a way it was not made for.
        raise InputError(
            f"{address}: cannot take images of {size} x {size} pixels ({first_line(error)}). Give another "
            "--vision-image-size, or leave it out."
        ) from error
    if len(shape) != 2:
        raise InputError(
            f"{address}: gives features of shape {shape} for one image, not [1, width]. Take another."
        )
    return int(shape[1])
