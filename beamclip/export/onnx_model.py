"""Write a model as ONNX files: from uint8 pixels to embeddings and to class probabilities."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beamclip.errors import InputError
from beamclip.export.folder import Layout

IMAGE_ENCODER, CLASSIFIER, TEXT_ENCODER = "image_encoder.onnx", "classifier.onnx", "text_encoder.onnx"
LABELS_FILE = "labels.json"
LAYOUT = Layout(IMAGE_ENCODER, (CLASSIFIER, TEXT_ENCODER, LABELS_FILE))
PIXELS, EMBEDDINGS, PROBABILITIES, TOKENS = "pixels", "embeddings", "probabilities", "tokens"
MOST_INLINE_BYTES = 2**31
"""An ONNX file, a protobuf message, cannot be larger; larger weights would need files beside it."""


def require_onnx() -> None:
    """Raise InputError unless the packages of the extra `export` are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--format onnx and mlflow need {error.name}, which is not installed. Run: "
            "pip install 'beamclip[export]'"
        ) from error


def to_onnx(network: nn.Module, example: Tensor, names: tuple[str, str], opset: int) -> Any:
    """Convert a network of one input and one output; the batch has any size.

    Args:
        example: at least two rows of input.
        names: of input and output; the first is that of the argument of `forward`, too.
        opset: 18 to 23.

    Returns:
        An onnx.ModelProto with its weights inside, checked by onnx.

    Raises:
        InputError: the weights exceed what one ONNX file holds.
    """
    import onnx

    size = sum(each.numel() * each.element_size() for each in network.state_dict().values())
    if size >= MOST_INLINE_BYTES:
        raise InputError(
            f"{size / 1e9:.1f} GB of weights are more than one ONNX file holds (2 GB). Use --format torch."
        )
    name, output = names
    with _quiet_torch():
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            input_names=[name],
            output_names=[output],
            dynamic_shapes={name: {0: torch.export.Dim.DYNAMIC}},
            opset_version=opset,
            verbose=False,
        )
    assert program is not None, "torch.onnx.export with dynamo returns a program"
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    return model


def with_head(encoder: Any, head: Any) -> Any:
    """Return an ONNX model that feeds the encoder's embeddings to a head; their opsets must be equal.

    Args:
        encoder: onnx.ModelProto from pixels to embeddings.
        head: onnx.ModelProto from embeddings to probabilities.
    """
    import onnx
    from onnx.compose import add_prefix, merge_models

    head = add_prefix(head, "head_", rename_outputs=False)
    head.ir_version = encoder.ir_version
    merged = merge_models(encoder, head, io_map=[(EMBEDDINGS, f"head_{EMBEDDINGS}")])
    onnx.checker.check_model(merged, full_check=True)
    return merged


def write_model(model: Any, file: Path, facts: Mapping[str, Any]) -> None:
    """Write an ONNX model with facts about it in its metadata: texts as they are, all else as JSON."""
    import onnx

    del model.metadata_props[:]
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=key, value=text)
    onnx.save_model(model, str(file))


def write_labels(classes: Sequence[Mapping[str, str]], directory: Path) -> None:
    """Write labels.json: a list of {"id", "name"} in the order of the probabilities."""
    text = json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n"
    (directory / LABELS_FILE).write_text(text, encoding="utf-8")


def run_onnx(file: Path, values: Tensor, batch_size: int = 64) -> Tensor:
    """Run an ONNX model of one input and one output on the CPU, so many rows at a time.

    Returns:
        Its output, float32.
    """
    session = cpu_session(file)
    name = session.get_inputs()[0].name
    parts: list[NDArray[np.float32]] = [
        session.run(None, {name: part.numpy()})[0] for part in values.split(batch_size)
    ]
    return torch.from_numpy(np.concatenate(parts))


def cpu_session(file: Path, threads: int = 0) -> Any:
    """Return a session of ONNX Runtime on the CPU; 0 threads are as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Hide what torch's exporter says about itself: to the user it is noise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
