"""Quantise an ONNX image encoder to int8: static where it convolves, dynamic where it multiplies matrices.

Static quantisation measures the range of every activation on calibration images, so that convolutions run in
int8 from end to end. Activations are unsigned and weights signed, one scale a channel: the pair for which
x86 CPUs have instructions (VNNI). A transformer's activations have outliers that a fixed range would cut, and
its time goes into products of matrices: their ranges are taken anew from each batch, which needs no
calibration.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from beamclip.errors import InputError
from beamclip.export.onnx_model import PIXELS

STATIC_OPS = ("Conv", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Gemm", "MatMul")
CALIBRATION_IMAGES = 256
CALIBRATION_BATCH = 16


def is_convolutional(model: Any) -> bool:
    """Whether an ONNX model has convolutions besides the patch embedding, a transformer's only one."""
    return sum(node.op_type == "Conv" for node in model.graph.node) > 1


def to_int8(model: Any, calibration: Callable[[], Tensor | None]) -> Any:
    """Quantise an image encoder.

    Args:
        model: onnx.ModelProto in float32, from pixels to embeddings.
        calibration: returns images to calibrate on, uint8 [N, 3, S, S]; asked for by a convolutional model.

    Returns:
        A new onnx.ModelProto with the same input and output.

    Raises:
        InputError: the model is convolutional, and there are no images.
    """
    import onnx

    static = is_convolutional(model)
    images = calibration() if static else None
    if static and (images is None or len(images) == 0):
        raise InputError(
            "--precision int8: there are no images to measure the ranges of activations on. Give "
            "--calibration-data: shards or a folder of images."
        )
    with tempfile.TemporaryDirectory() as scratch:
        source, prepared, target = (Path(scratch) / f"{name}.onnx" for name in ("source", "prepared", "int8"))
        onnx.save_model(model, str(source))
        _prepare(source, prepared)
        if static:
            assert images is not None
            _quantise_static(prepared, target, images)
        else:
            _quantise_dynamic(prepared, target)
        return onnx.load_model(str(target))


def _prepare(source: Path, target: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # ONNX's own inference of shapes is enough, and the symbolic one needs sympy.
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)


def _quantise_static(source: Path, target: Path, images: Tensor) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(target),
        _calibration_reader(images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(STATIC_OPS),
        nodes_to_exclude=_normalisation(onnx.load_model(str(source))),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        # The mean of the batches' ranges: of what was measured, it came closest to float32 (with percentiles,
        # which keep the activations of all images in memory).
        extra_options={"CalibMovingAverage": True},
    )


def _quantise_dynamic(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), per_channel=True, weight_type=QuantType.QInt8)


def _normalisation(model: Any) -> list[str]:
    """Names of the nodes before the first convolution: pixels are exact as they are."""
    names = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            break
        names.append(node.name)
    return names


def _calibration_reader(images: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    batches: Iterator[Tensor] = iter(images[:CALIBRATION_IMAGES].split(CALIBRATION_BATCH))

    class Reader(CalibrationDataReader):
        """Feeds the calibration images to ONNX Runtime, batch by batch."""

        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {PIXELS: batch.numpy()}

    return Reader()
