"""Images in any of the forms that Python programs hold them in, brought to a model's input."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import fsspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor

from beamclip.data.decode import on_white
from beamclip.data.transforms import fit_evaluation_picture, load_evaluation_image
from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip
from beamclip.places import absolute, one_line

Image: TypeAlias = str | os.PathLike[str] | bytes | Pillow.Image | NDArray[np.uint8] | Tensor
"""A path or an address (s3://...), the bytes of a file, a Pillow image, pixels as uint8 [H, W, 3] (numpy) or
uint8 [3, H, W] (torch)."""
Images: TypeAlias = Image | Iterable[Image]
"""One image or several; arrays and tensors with one more dimension in front are several."""


def each_image(images: Images) -> Iterator[Image]:
    """Yield the images one by one, those of an iterator only as they are asked for.

    Raises:
        InputError: it is nothing that holds images.
    """
    if isinstance(images, str | os.PathLike | bytes | Pillow.Image):
        yield images
    elif isinstance(images, np.ndarray | Tensor):
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise InputError(f"images: an object of type {type(images).__name__} holds no images. {_FORMS}.")


def model_input(image: Image, number: int, clip: LoadedClip) -> NDArray[np.uint8]:
    """Decode an image and resize it as evaluation does.

    Args:
        number: place among the images, for messages.

    Returns:
        uint8 [size, size, 3].

    Raises:
        InputError: it cannot be read or decoded, or has no form of an image; the message names it.
    """
    try:
        return _fitted(image, clip)
    except FileNotFoundError as error:
        advice = "A text in place of an image is its path; for texts, give texts=..."
        raise InputError(f"images[{number}]{_name(image)}: no such file. {advice}") from error
    except Exception as error:  # of a store, of Pillow, or because of a form that is none
        raise InputError(f"images[{number}]{_name(image)}: {one_line(error)}.") from error


def _fitted(image: Image, clip: LoadedClip) -> NDArray[np.uint8]:
    given = {key: clip.preprocess_cfg[key] for key in ("resize_mode", "interpolation", "fill_color")}
    if isinstance(image, str | os.PathLike):
        image = _content(image)
    if isinstance(image, bytes):
        return load_evaluation_image(image, clip.image_size, **given)
    return fit_evaluation_picture(_picture(image), clip.image_size, **given)


def _content(place: str | os.PathLike[str]) -> bytes:
    path = absolute(os.fspath(place))
    if "://" not in path:
        return Path(path).read_bytes()
    with fsspec.open(path) as file:
        content: bytes = file.read()
    return content


def _picture(image: Any) -> Pillow.Image:
    """Return a decoded image in RGB, upright, on white."""
    if isinstance(image, Tensor):
        _check_pixels(image, image.ndim == 3 and image.shape[0] == 3, "[3, H, W]")
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray):
        _check_pixels(image, image.ndim == 3 and image.shape[2] == 3, "[H, W, 3]")
        return Pillow.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Pillow.Image):
        raise TypeError(f"an object of type {type(image).__name__} is no image. {_FORMS}")
    if image.mode.startswith("I") or image.mode == "F":
        raise ValueError(
            f"Pillow's mode {image.mode} does not say what is white. Give the file itself, or RGB"
        )
    return on_white(ImageOps.exif_transpose(image))


def _check_pixels(pixels: Any, fits: bool, shape: str) -> None:
    if not fits or pixels.dtype not in (np.uint8, torch.uint8) or 0 in pixels.shape:
        raise ValueError(f"pixels must be uint8 {shape}, 0 to 255, not {pixels.dtype} {list(pixels.shape)}")


def _name(image: Any) -> str:
    return f" ({os.fspath(image)})" if isinstance(image, str | os.PathLike) else ""


_FORMS = "Give paths, bytes, Pillow images, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W]"
