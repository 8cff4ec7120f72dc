"""Write a model as torch.export programs (.pt2): plain torch runs them, without open_clip or timm."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from beamclip.export.folder import Layout
from beamclip.export.onnx_model import LABELS_FILE

IMAGE_ENCODER, CLASSIFIER = "image_encoder.pt2", "classifier.pt2"
LAYOUT = Layout(IMAGE_ENCODER, (CLASSIFIER, LABELS_FILE))


def trace(network: nn.Module, example: Tensor, name: str) -> ExportedProgram:
    """Trace a network of one input as a program whose batch has any size.

    Args:
        example: at least two rows of input: torch takes a batch of one for a constant.
        name: of the argument of `forward`.
    """
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes={name: {0: Dim.DYNAMIC}}, strict=False)


def write_program(network: nn.Module, size: int, file: Path) -> None:
    """Trace a network on pixels, uint8 [N, 3, size, size], and write the program."""
    # The file keeps the example: no image of the user may be in it.
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    torch.export.save(trace(network, example, "pixels"), file)


def run_program(file: Path, pixels: Tensor) -> Tensor:
    """Load a program and run it on pixels."""
    with torch.no_grad():
        output: Tensor = torch.export.load(file).module()(pixels)
    return output
