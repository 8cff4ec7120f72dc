"""Compare an export with the PyTorch model that it was made from, before anybody relies on it."""

from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from beamclip.errors import FailedRunError

FP32_TOLERANCE = 1e-3
"""Largest difference of an embedding's, a feature's or a probability's number, against PyTorch. Sums in
another order differ by about 1e-6; a logit scale of 100 makes 1e-4 of that."""
INT8_TOLERANCE = 0.05
"""Largest mean of 1 - cosine between int8 embeddings and PyTorch's."""
PIXEL_TOLERANCE = 3
"""Largest difference, in levels of 255, that the order of rounding makes in a resized picture."""
LEAST_SAME_TOP1 = 0.95
"""Share of images with PyTorch's most probable class below which the user is warned."""

_OTHER_FORMAT = "Use another --format: the tool behind this one computes something else."


@dataclass(frozen=True)
class Parity:
    """How close an export comes to PyTorch on some images."""

    what: str
    """What was compared: embeddings, features, probabilities, pixels."""
    images: int
    largest: float
    """Largest difference of a single number."""
    distance: float
    """Mean of 1 - cosine over the images."""
    same_top1: float | None
    """Share of images with the same most probable class, 0..1; None for other than probabilities."""

    def metrics(self, name: str) -> dict[str, float]:
        """Return the figures for summary.json, under names that begin with `name`."""
        figures = {"difference": self.largest, "distance": self.distance, "same_top1": self.same_top1}
        return {f"{name}_{figure}": value for figure, value in figures.items() if value is not None}


def compare(what: str, found: Tensor, expected: Tensor) -> Parity:
    """Compare the outputs of an export with those of PyTorch.

    Args:
        what: embeddings, features, probabilities or pixels.
        found, expected: [N, F] each, N >= 1.

    Raises:
        FailedRunError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise FailedRunError(
            f"{what} of the export are {list(found.shape)}, those of PyTorch {list(expected.shape)}: nothing "
            f"was written. {_OTHER_FORMAT}"
        )
    found, expected = found.double(), expected.double()
    distance = 1.0 - torch.cosine_similarity(found, expected, dim=1)
    agree = (found.argmax(dim=1) == expected.argmax(dim=1)).double().mean()
    return Parity(
        what,
        len(found),
        float((found - expected).abs().max()),
        max(0.0, float(distance.mean())),
        float(agree) if what == "probabilities" else None,
    )


def check_close(parity: Parity) -> Parity:
    """Return the comparison of a float32 export.

    Raises:
        FailedRunError: it differs from PyTorch by more than FP32_TOLERANCE.
    """
    # A NaN compares as neither.
    if not parity.largest <= FP32_TOLERANCE:
        raise FailedRunError(
            f"{parity.what} of the export differ from PyTorch's by up to {parity.largest:.3g} on "
            f"{parity.images} images, more than {FP32_TOLERANCE:g}: nothing was written. {_OTHER_FORMAT}"
        )
    return parity


def check_similar(parity: Parity) -> Parity:
    """Return the comparison of an int8 export.

    Raises:
        FailedRunError: its embeddings differ from PyTorch's by more than INT8_TOLERANCE, or it gives no
            numbers.
    """
    if isnan(parity.largest) or (parity.what == "embeddings" and parity.distance > INT8_TOLERANCE):
        raise FailedRunError(
            f"int8 {parity.what} have a mean distance (1 - cosine) of {parity.distance:.3f} from PyTorch's "
            f"on {parity.images} images, more than {INT8_TOLERANCE:g}: nothing was written. Give "
            "--calibration-data like the images to come, or export with --precision fp32."
        )
    return parity


def check_pixels(parity: Parity) -> Parity:
    """Return the comparison of an export's own resizing.

    Raises:
        FailedRunError: its pixels differ from those of evaluation by more than PIXEL_TOLERANCE.
    """
    if parity.largest > PIXEL_TOLERANCE:
        raise FailedRunError(
            f"--any-size: {parity.images} pictures that the export resizes differ from those of evaluation "
            f"by up to {parity.largest:.0f} levels of 255, more than {PIXEL_TOLERANCE}: nothing was written. "
            "Leave --any-size out, and resize before it."
        )
    return parity


def warning_of(parity: Parity) -> str | None:
    """Say what is wrong with an export that was written all the same; None if nothing is."""
    if parity.same_top1 is None or parity.same_top1 >= LEAST_SAME_TOP1:
        return None
    return (
        f"{100 * (1 - parity.same_top1):.0f} % of {parity.images} images get another class than PyTorch "
        "gives them, so that accuracy may be lower by as much. Give --calibration-data like the images to "
        "come, or export with --precision fp32."
    )
