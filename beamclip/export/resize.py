"""An ONNX model that resizes and crops pictures of any size, as open_clip does with Pillow.

ONNX Runtime's antialiased cubic resize of uint8 is a port of Pillow's: most pictures become the same pixels,
tall ones differ by up to 2 levels of 255. On float input it rounds otherwise, and differs by up to 17 levels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from beamclip.data.decode import decode_pixels
from beamclip.errors import InputError
from beamclip.export.onnx_model import PIXELS
from beamclip.export.parity import Parity, compare
from beamclip.models.clip import LoadedClip

IMAGE = "image"

_SHORTEST = """
<ir_version: 10, opset_import: ["" : {opset}]>
resize (uint8[batch, 3, height, width] image) => (uint8[batch, 3, {size}, {size}] pixels)
<int64[1] side = {{{size}}}, int64[2] axes = {{2, 3}}, float half = {{0.5}}>
{{
    leading = Shape <end = 2> (image)
    given = Shape <start = 2> (image)
    shorter = ReduceMin <keepdims = 1> (given)
    scaled = Mul (given, side)
    resized = Div (scaled, shorter)
    sizes = Concat <axis = 0> (leading, resized)
    picture = Resize <mode = "{mode}", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1>
        (image, , , sizes)
    beyond = Sub (resized, side)
    beyond_float = Cast <to = 1> (beyond)
    middle = Mul (beyond_float, half)
    rounded = Round (middle)
    start = Cast <to = 7> (rounded)
    end = Add (start, side)
    pixels = Slice (picture, start, end, axes)
}}
"""
_SQUASH = """
<ir_version: 10, opset_import: ["" : {opset}]>
resize (uint8[batch, 3, height, width] image) => (uint8[batch, 3, {size}, {size}] pixels)
<int64[2] side = {{{size}, {size}}}>
{{
    leading = Shape <end = 2> (image)
    sizes = Concat <axis = 0> (leading, side)
    pixels = Resize <mode = "{mode}", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1>
        (image, , , sizes)
}}
"""


def check_resizable(clip: LoadedClip) -> None:
    """Raise InputError for a model whose pictures are padded: ONNX has no resize for that."""
    mode = clip.preprocess_cfg["resize_mode"]
    if mode not in ("shortest", "squash"):
        raise InputError(
            f"--any-size: {clip.address} pads its pictures (resize_mode {mode}), which the ONNX model "
            "cannot. Leave --any-size out, and resize before it."
        )


def with_resize(encoder: Any, clip: LoadedClip, opset: int) -> Any:
    """Return an ONNX model that takes pictures of any size, uint8 [N, 3, H, W], for one that takes pixels.

    Args:
        encoder: onnx.ModelProto from pixels to embeddings.
        clip: its model, which check_resizable allows.
    """
    from onnx.compose import add_prefix, merge_models

    front = add_prefix(_resize_model(clip, opset), "resize_", rename_inputs=False)
    front.ir_version = encoder.ir_version
    return merge_models(front, encoder, io_map=[(f"resize_{PIXELS}", PIXELS)])


def resize_parity(clip: LoadedClip, originals: Sequence[bytes], fitted: Tensor, opset: int) -> Parity:
    """Compare the pixels that the resizing makes of pictures with those of evaluation.

    Args:
        originals: files of pictures, at least one.
        fitted: uint8 [N, 3, S, S], what evaluation makes of them.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        _resize_model(clip, opset).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pictures = (decode_pixels(each).transpose(2, 0, 1)[None] for each in originals)
    found = [torch.from_numpy(session.run(None, {IMAGE: picture})[0]) for picture in pictures]
    return compare("pixels", torch.cat(found).flatten(1), fitted.flatten(1))


def _resize_model(clip: LoadedClip, opset: int) -> Any:
    import onnx

    text = _SQUASH if clip.preprocess_cfg["resize_mode"] == "squash" else _SHORTEST
    mode = "linear" if clip.preprocess_cfg["interpolation"] == "bilinear" else "cubic"
    return onnx.parser.parse_model(text.format(opset=opset, size=clip.image_size, mode=mode))
