"""A small student, images, and what was exported from them once for all tests of the room."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beamclip.export.formats import Classes, Exported, Parities, write_onnx
from beamclip.export.networks import ClassHead
from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.student import StudentConfig, build_student
from beamclip.prompts.anchors import Anchors

NAMES = ("crane", "owl", "heron", "kite")


def unit_rows(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """[rows, width] random rows of unit length."""
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def picture_files() -> tuple[bytes, ...]:
    """Files of pictures of several sizes and kinds: wide, tall, small; transparent; turned on their side."""
    files = []
    for width, height, mode in ((90, 40, "RGB"), (45, 133, "RGBA"), (20, 27, "RGB")):
        noise = np.random.default_rng(width).integers(0, 256, (9, 7, len(mode)), np.uint8)
        image, file = Image.fromarray(noise).resize((width, height)), io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(file, "PNG", exif=exif)
        files.append(file.getvalue())
    return tuple(files)


@pytest.fixture(scope="session")
def student() -> LoadedClip:
    """A student of 32 px whose batch statistics are not those of initialisation."""
    built = build_student(
        StudentConfig(student="test_resnet", student_image_size=32), new_clip("tiny-vit", seed=0), seed=0
    )
    built.model.visual.train()
    with torch.no_grad():
        built.model.encode_image(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    built.model.eval()
    return built


@pytest.fixture(scope="session")
def exported(student: LoadedClip) -> Exported:
    """The student with four classes, one of which has two anchors, and images of coloured gradients."""
    ramp = torch.linspace(0, 255, 32).view(1, 1, 1, 32)
    colours = torch.rand(48, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    tilt = torch.rand(48, 1, 32, 1, generator=torch.Generator().manual_seed(2))
    pixels = (ramp * colours * (0.3 + 0.7 * tilt)).to(torch.uint8)
    anchors = Anchors(unit_rows(5, student.embed_dim), torch.tensor([0, 1, 1, 2, 3]))
    labels = [{"id": f"n{place}", "name": name} for place, name in enumerate(NAMES)]
    classes = Classes(labels, ClassHead(anchors, 4, 20.0), ("{}",))
    return Exported(student, pixels, classes, calibration=lambda: pixels, originals=picture_files())


@pytest.fixture(scope="session")
def onnx_export(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parities]:
    """The ONNX export of the student, and how close it came."""
    out = tmp_path_factory.mktemp("exports") / "onnx"
    return out, write_onnx(exported, out, opset=18)
