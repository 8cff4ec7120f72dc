"""Pictures of any size, resized and cropped inside an ONNX model, against Pillow."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from beamclip.data.transforms import load_evaluation_image
from beamclip.errors import InputError
from beamclip.export.formats import Exported, Parities
from beamclip.export.resize import check_resizable, with_resize
from beamclip.models.clip import LoadedClip


def picture(width: int, height: int) -> Image.Image:
    """A picture with fine and coarse structure."""
    noise = np.random.default_rng(width).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    stripes = (np.arange(width) // 3 % 2 * 90)[None, :, None]
    return Image.fromarray(np.clip(smooth + stripes - 45, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(200, 131), (90, 301), (32, 32), (20, 27), (65, 32)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_the_pixels_are_those_of_open_clips_preprocessing(
    student: LoadedClip, mode: str, size: tuple[int, int]
) -> None:
    clip = replace(student, preprocess_cfg={**student.preprocess_cfg, "resize_mode": mode})
    identity = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (uint8[batch, 3, 32, 32] pixels) => '
        "(uint8[batch, 3, 32, 32] embeddings) { embeddings = Identity (pixels) }"
    )
    session = onnxruntime.InferenceSession(with_resize(identity, clip, 18).SerializeToString())
    image, file = picture(*size), io.BytesIO()
    image.save(file, "PNG")
    (found,) = session.run(None, {"image": np.asarray(image).transpose(2, 0, 1)[None]})
    expected = load_evaluation_image(file.getvalue(), 32, resize_mode=mode)
    difference = np.abs(found[0].transpose(1, 2, 0).astype(int) - expected)
    # Tall pictures differ by one or two levels of 255 in a tenth of their values; others are equal.
    assert difference.max() <= 2
    assert difference.mean() < 0.15


def test_the_encoder_takes_pictures_of_any_size(
    onnx_export: tuple[Path, Parities], exported: Exported
) -> None:
    encoder = onnx.load(onnx_export[0] / "image_encoder.onnx")
    session = onnxruntime.InferenceSession(with_resize(encoder, exported.clip, 18).SerializeToString())
    (found,) = session.run(None, {"image": exported.pixels[:3].numpy()})
    np.testing.assert_allclose(found, exported.embeddings[:3], atol=1e-5)
    large = np.asarray(picture(120, 80)).transpose(2, 0, 1)[None]
    assert session.run(None, {"image": large})[0].shape == (1, exported.clip.embed_dim)


def test_a_model_that_pads_its_pictures_is_refused(student: LoadedClip) -> None:
    clip = replace(student, preprocess_cfg={**student.preprocess_cfg, "resize_mode": "longest"})
    with pytest.raises(InputError, match="Leave --any-size out"):
        check_resizable(clip)
